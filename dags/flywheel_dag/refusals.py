"""Which errors end a task at once, and which are tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException


@contextmanager
def refusals_end_the_task() -> Iterator[None]:
    """Fail at once on what is refused at every try; all else, as a registry or logs out of reach, is tried again."""
    from pydantic import ValidationError

    from flywheel_tasks.online.approval import ApprovalError
    from flywheel_tasks.online.event_errors import EventsError, UnreachableEventsError
    from flywheel_tasks.online.exposed import PopulationError
    from flywheel_tasks.online.launch import LaunchError
    from flywheel_tasks.online.model_card import CardError
    from flywheel_tasks.online.promotion import PromotionError
    from flywheel_tasks.storage.registry_state import OvertakenError, RegistryError

    try:
        yield
    except (OvertakenError, UnreachableEventsError):
        raise  # the next try starts from what the registry says then, or finds the events there
    except (
        ApprovalError,
        CardError,
        EventsError,
        LaunchError,
        PopulationError,
        PromotionError,
        RegistryError,
        ValidationError,
    ) as error:
        raise AirflowFailException(str(error)) from error
