"""The registry as a gateway asks it: what it said last is kept, for a start while it is out of reach."""

import logging
from pathlib import Path

from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import State

_log = logging.getLogger(__name__)


class RememberedRegistry:
    """Asks the registry for its state.

    A gateway that has heard from it goes on with what it knows; one that has just been started would know nothing, and
    turn everybody away, though models, keys and cards are there.

    Args:
        registry: that is asked.
        path: where its last state is kept, on this machine.
    """

    def __init__(self, registry: Registry, path: Path) -> None:
        self._registry, self._path = registry, path
        self._last: State | None = None

    def state(self) -> State:
        """The registry's state; until it has answered for the first time, what it said before the start.

        Raises:
            OSError: it cannot be read, and has been before in this process, or never on this machine. So do other
                errors of its store.
        """
        try:
            found = self._registry.state()
        except Exception as error:
            if self._last is not None or (kept := self._kept()) is None:
                raise
            _log.warning(
                "the registry cannot be read (%s): its last known state is served", type(error).__name__
            )
            return kept
        if found != self._last:
            self._last = found
            try:
                with atomic_path(self._path) as temporary:
                    temporary.write_text(found.model_dump_json(), encoding="utf-8")
            except OSError as error:  # what the registry says holds all the same
                _log.error("the registry's state is not kept for the next start: %s", error)
        return found

    def _kept(self) -> State | None:
        try:
            return State.model_validate_json(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # absent, or nothing that a gateway of this release has written
            return None
