"""The champions of the registry's history."""

from collections.abc import Iterable

from flywheel_tasks.storage.registry_state import ModelRef, RegistryError, State


def earlier_champion(states: Iterable[State], generation: str) -> ModelRef:
    """The model of a generation that was champion once and is not now; ``base`` is what the registry began with.

    Args:
        states: of the registry, oldest first.
        generation: that made it.

    Raises:
        RegistryError: it is champion now, or has never been.
    """
    champions = [state.champion for state in states if state.champion is not None]
    if champions and champions[-1].generation == generation:
        raise RegistryError(f"{generation} is champion now")
    if (
        found := next((model for model in reversed(champions) if model.generation == generation), None)
    ) is None:
        known = ", ".join(dict.fromkeys(model.generation for model in champions)) or "none"
        raise RegistryError(f"{generation} has never been champion; these have: {known}")
    return found
