"""Imports the large packages of training once a run: a process that has them forks for each stage that needs them.

``dvc repro`` starts each stage as a process of its own, and ten stages of a generation would spend 8 to 10 CPU seconds
each on importing torch, transformers and TRL. :func:`server` starts a process beside DVC, which costs nothing until the
first such stage asks it. ``flywheel stage`` hands it its arguments, environment, working directory and open files, and
waits. The server imports what the stage's code imports at its top from the packages below, and nothing else: the
project's own code is read by the fork, so a stage runs the code that DVC has hashed.

Nothing depends on it: where it is off, cannot be reached, or was started with another environment, a stage runs in the
process that DVC started.
"""

import ast
import gc
import importlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flywheel_tasks.pipeline.graph import Stage, load_graph
from flywheel_tasks.pipeline.process import die_with_parent

logger = logging.getLogger(__name__)

# ``0``, the default, is off; ``1`` stands for the packages below; others are named with commas between. Off by default:
# once pyarrow is imported, a thread of its allocator runs, and no fork is made beside a thread.
SETTING = "FLYWHEEL_WARM"
_ADDRESS = "FLYWHEEL_WARM_SERVER"
_PACKAGES = "torch,transformers,trl,peft,accelerate,datasets,sentence_transformers,sklearn"
# What the shell and DVC set for a stage. In all else a stage's environment must be the server's: libraries read it when
# they are imported (threads, devices, offline switches).
_OF_THE_COMMAND = {"_", "PWD", "OLDPWD", "SHLVL", "DVC_ROOT", "DVC_STAGE", _ADDRESS}
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Imports = dict[str, list[str]]


class ServerKilledError(RuntimeError):
    """The process that a stage was forked from is gone, and the stage with it."""


def _packages(environment: Mapping[str, str]) -> frozenset[str]:
    named = environment.get(SETTING, "0")
    if named in ("", "0"):
        return frozenset()
    return frozenset((_PACKAGES if named == "1" else named).split(","))


def _surroundings() -> dict[str, Any]:
    """What must be the same in the process that imports a library and in the one that uses it."""
    path = sys.path if sys.flags.safe_path else sys.path[1:]  # without the folder of the program itself
    environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_COMMAND}
    return {"python": [sys.prefix, sys.version], "path": path, "environment": environment}


def imports_of(stage: Stage, root: Path, packages: frozenset[str]) -> Imports:
    """Names by module that a stage's code imports from some packages when it is loaded.

    Args:
        stage: its dependencies name its code. Of the module of its entry, imports within functions count as well.
        root: the workspace.
        packages: names of packages.
    """
    found: dict[str, set[str]] = {}
    entry = stage.entry.partition(":")[0].replace(".", "/") + ".py"
    for path in (dep for dep in stage.deps if dep.endswith(".py")):
        code = ast.parse((root / path).read_bytes(), path)
        for node in ast.walk(code) if path == entry else code.body:
            if isinstance(node, ast.Import):
                modules = {alias.name: set[str]() for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = {node.module: {alias.name for alias in node.names}}
            else:
                continue
            for module, names in modules.items():
                if module.partition(".")[0] in packages:
                    found.setdefault(module, set()).update(names)
    return {module: sorted(names) for module, names in sorted(found.items())}


@contextmanager
def server(root: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a server while the block runs; it dies with this process.

    Args:
        root: the workspace.
        environment: of the server; stages must have the same.

    Yields:
        variables for DVC's environment that lead stages to the server; none where it is off or cannot be started.
    """
    if sys.platform != "linux" or not _packages(environment):
        yield {}
        return
    folder = Path(
        tempfile.mkdtemp(prefix="flywheel-")
    )  # for this user alone, and short: so must be a socket's path
    process = None
    try:
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "s"))
                listener.listen()  # so that a stage may ask before the server is up
                process = subprocess.Popen(
                    # -P: the current folder is no place to import from, as it is none for the command flywheel
                    [sys.executable, "-P", "-m", __name__, str(listener.fileno())],
                    cwd=root,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[listener.fileno()],
                    process_group=0,  # a terminal's Ctrl-C reaches the stage by its own process, and once
                    preexec_fn=die_with_parent,  # no threads are started before this call
                )
        except OSError as error:
            logger.warning("stages import their packages themselves: %s", error)
        yield {_ADDRESS: str(folder / "s")} if process else {}
    finally:
        if process:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wanted(name: str, root: Path) -> Imports:
    """What a server is to import for a stage; nothing for one that is unknown, or works in processes of its own."""
    stage = load_graph(root / "dvc.yaml").get(name)
    if stage is None:
        return {}
    if stage.distributed:
        from flywheel_tasks.pipeline.launcher import configuration
        from flywheel_tasks.settings import load_settings

        if configuration(load_settings(root / "params.yaml").compute, name, root) is not None:
            return {}
    return imports_of(stage, root, _packages(os.environ))


def run(name: str, root: Path) -> int | None:
    """Have this very command, ``flywheel stage``, run by a fork of the server; signals are passed on.

    Args:
        name: the stage.
        root: the workspace.

    Returns:
        its exit code, 128 and more for a signal; None where this process is to run the stage itself.

    Raises:
        ServerKilledError: the server died while the stage ran.
    """
    address = os.environ.pop(_ADDRESS, None)  # what a stage starts is none of the server's business
    if address is None or not (imports := _wanted(name, root)):
        return None
    request = {
        "surroundings": _surroundings(),
        "imports": imports,
        "argv": sys.argv,
        "path": sys.path,
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile("rb")
        answer = json.loads(answers.readline() or '{"refused": "the server ended"}')
    except OSError as error:
        answer = {"refused": str(error)}
    if "refused" in answer:
        logger.warning("stage %s imports its packages itself: %s", name, answer["refused"])
        return None
    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    try:
        code = int(json.loads(answers.readline()))
    except (OSError, ValueError):
        raise ServerKilledError(f"stage {name}: the process it was forked from was killed") from None
    if code < 0:
        print(f"error: stage {name} was killed by {signal.Signals(-code).name}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _import(imports: Imports) -> str | None:
    """Import; why no fork may follow, or None."""
    try:
        for module, names in imports.items():
            loaded = importlib.import_module(module)
            for name in names:
                getattr(loaded, name, None)  # packages load their parts when they are asked for
    except Exception as error:  # whatever a package raises, the stage will show it
        return f"the import failed: {error!r}"
    gc.collect()
    gc.freeze()  # collections in a fork do not copy what all share
    if not (trial := os.fork()):
        os._exit(0)
    os.waitpid(trial, 0)
    # A fork makes OpenBLAS end its threads. Any other's would be missing in a fork, with the locks they hold.
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        return f"{threads - 1} threads were started by imports"
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            if file.readlink() == Path("/dev/nvidia-uvm"):
                return "an import has opened CUDA, which a fork could not use"
    return None


def _wait(worker: int, connection: socket.socket) -> int:
    """Exit code of a worker, negative for a signal; passes on its client's signals, and kills it when that dies."""
    poll, ended = select.poll(), os.pidfd_open(worker)
    poll.register(ended, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while ended not in (ready := [descriptor for descriptor, _ in poll.poll()]):
        assert connection.fileno() in ready
        try:
            numbers = connection.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(worker, number)
        if not numbers:
            poll.unregister(connection)
    os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _answer(connection: socket.socket, answer: Any) -> None:
    with suppress(OSError):  # its client is dead
        connection.sendall(json.dumps(answer).encode() + b"\n")


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer one stage after the other; returns in each worker: its request, and its three open files.

    Raises:
        SystemExit: in the server, where it cannot go on; stages run in their own processes from then on.
    """
    surroundings = _surroundings()
    # Otherwise a package that asks for GPUs when it is imported would open CUDA, and no fork could use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    me = os.getpid()
    while True:
        connection = listener.accept()[0]
        with connection:
            files = list(socket.recv_fds(connection, 1, 3)[1])
            with connection.makefile("rb") as sent:
                request = json.loads(sent.readline() or "null")
            if request and request["surroundings"] != surroundings:
                _answer(connection, {"refused": _difference(surroundings, request["surroundings"])})
            elif request:
                if problem := _import(request["imports"]):
                    _answer(connection, {"refused": problem})
                    sys.exit(1)
                if not (worker := os.fork()):
                    die_with_parent(me)
                    listener.close()
                    return request, files
                _answer(connection, {"started": worker})
                _answer(connection, _wait(worker, connection))
        for file in files:
            os.close(file)


def _difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Which surroundings differ; values stay untold, they may be secrets."""
    pairs = here["environment"].items() ^ there["environment"].items()
    names = sorted({name for name, _ in pairs}) or [name for name in here if here[name] != there[name]]
    return f"the server was started with another {', '.join(names)}"


def become(request: dict[str, Any], files: list[int]) -> None:
    """Make a worker what its client is: open files, working directory, environment, arguments, places of code."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:], sys.path[:] = request["argv"], request["path"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "flywheel_tasks"]:
        del sys.modules[name]  # it may have changed since the server started
    importlib.invalidate_caches()


if __name__ == "__main__":
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    # By name: the runner, which imports this module, must not import the command line and all that it can do.
    importlib.import_module("flywheel_tasks.cli").main()
