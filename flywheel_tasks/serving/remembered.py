"""What a gateway knows from before its start: the registry's last state, and the champion that was served last.

A gateway that has heard from the registry goes on with what it knows; one that has just been started would know
nothing, and turn everybody away, though models, keys and cards are there.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import ModelRef, Record, RegistryError, State

_log = logging.getLogger(__name__)
_Kept = TypeVar("_Kept", bound=Record)


class _Known(Record):
    """A state of the registry, and how many changes its history had."""

    changes: Annotated[int, Field(ge=0)]
    state: State

    @model_validator(mode="before")
    @classmethod
    def _of_the_state_alone(cls, data: Any) -> Any:
        """A file of a gateway that kept nothing but the state."""
        return {"changes": 0, "state": data} if isinstance(data, Mapping) and "state" not in data else data


def _read(path: Path, kind: type[_Kept]) -> _Kept | None:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or nothing that a gateway of this release has written
        return None


def _write(path: Path, record: Record) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(record.model_dump_json(), encoding="utf-8")
    except OSError as error:  # what is known now holds all the same
        _log.error("%s is not kept for the next start: %s", path.name, error)


class RememberedRegistry:
    """Asks the registry for its state.

    Args:
        registry: that is asked.
        path: where its last state is kept, on this machine.
    """

    def __init__(self, registry: Registry, path: Path) -> None:
        self._registry, self._path = registry, path
        self._last: _Known | None = None

    def state(self) -> State:
        """The registry's state; until it has answered for the first time, what it said before the start.

        Raises:
            OSError: it cannot be read, and has been before in this process, or never on this machine. So do other
                errors of its store.
            RegistryError: likewise, if it is not what it was: its history never shrinks, but an empty folder in which
                nothing is mounted looks like a registry without a history.
        """
        known = self._last or _read(self._path, _Known)
        try:
            found = self._found(known)
        except Exception as error:
            if self._last is not None or known is None:
                raise
            told = error if isinstance(error, RegistryError) else type(error).__name__
            _log.warning("the registry cannot be read (%s): its last known state is served", told)
            return known.state
        if found != self._last:
            self._last = found
            _write(self._path, found)
        return found.state

    def _found(self, known: _Known | None) -> _Known:
        changes, state = self._registry.head()
        if known is None or (
            changes >= known.changes and not (state.champion is None and known.state.champion is not None)
        ):
            return _Known(changes=changes, state=state)
        raise RegistryError(
            f"registry: it has {changes} changes and had {known.changes} before: is its place mounted? If it was "
            f"begun anew, remove {self._path} and start the gateway again"
        )


class RememberedChampion:
    """The champion that was served last on this machine.

    Args:
        path: where it is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: ModelRef | None = None

    def last(self) -> ModelRef | None:
        """It; None if there has been none."""
        return self._noted or _read(self._path, ModelRef)

    def note(self, champion: ModelRef) -> None:
        """Keep another one."""
        if champion != self._noted:
            self._noted = champion
            _write(self._path, champion)
