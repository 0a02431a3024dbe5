"""A free port for a server that a test starts."""

import random
import socket

# Below those that Linux gives to whoever asks for any: the server binds it seconds later, and until then a client's
# connection could get it.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")
