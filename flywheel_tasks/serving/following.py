"""Follows the registry: which champion and which tests are served, and what keeps it from what the registry says."""

import asyncio
import logging
from datetime import UTC, datetime

from flywheel_tasks.serving.fleet import Fleet
from flywheel_tasks.serving.remembered import RememberedChampion, RememberedRegistry
from flywheel_tasks.serving.rollout import Rollout, rollout_of
from flywheel_tasks.storage.registry_state import ModelRef, State

_log = logging.getLogger(__name__)
_SOON_SECONDS = 1.0


class Following:
    """What a gateway serves of the registry.

    A champion takes over when it is ready; until then the one before goes on. Everything else holds at once: a test
    that was stopped must not go on because another one's candidate is not there.

    Args:
        registry: that is followed.
        fleet: the models.
        served: where the champion that was served last is kept.

    Attributes:
        rollout: what is served; None before the registry has a champion.
        overdue: the registry's champion, while it is not ready.
    """

    def __init__(self, registry: RememberedRegistry, fleet: Fleet, served: RememberedChampion) -> None:
        self._registry, self._fleet, self._served = registry, fleet, served
        self.rollout: Rollout | None = None
        self.overdue: ModelRef | None = None

    async def look(self) -> None:
        """Look at the registry once; take over what changed.

        Raises:
            OSError, RegistryError: it cannot be read, as :meth:`RememberedRegistry.state` says.
        """
        state = await asyncio.to_thread(self._registry.state)
        wanted = rollout_of(state, datetime.now(UTC))
        if wanted is None:
            return
        self._fleet.want(wanted.models())
        # A model on a server that has it needs no loading: it is there at the first look, the champion's and a test's.
        waits = (self._fleet.ready_within(model, _SOON_SECONDS) for model in wanted.models())
        ready, *_ = await asyncio.gather(*waits)
        champion, tried = (wanted.champion, []) if ready else await self._stand_in(wanted.champion, state)
        self.overdue = None if ready else wanted.champion
        self._take(wanted.under(champion))
        self._fleet.keep([champion, *tried, *wanted.models()])
        if self._fleet.ready(champion):
            await asyncio.to_thread(self._served.note, champion)

    async def _stand_in(self, wanted: ModelRef, state: State) -> tuple[ModelRef, list[ModelRef]]:
        """Who is served in place of a champion that is not ready: it itself if nobody can be.

        While it is loaded for the first time no other is loaded beside it: that would not be there any sooner.

        Returns:
            the model, and those that are being prepared to be it.
        """
        if self.rollout is not None and self._fleet.ready(self.rollout.champion):
            return self.rollout.champion, []
        tried: list[ModelRef] = []
        if not self._fleet.broken(wanted):
            return wanted, tried
        for model in (self._served.last(), state.previous):
            if model is None or model.digest in {wanted.digest, *(one.digest for one in tried)}:
                continue
            tried.append(model)
            self._fleet.want([model])
            if await self._fleet.ready_within(model, _SOON_SECONDS):
                return model, tried
            if not self._fleet.broken(model):
                break
        return wanted, tried

    def _take(self, rollout: Rollout) -> None:
        if rollout == self.rollout:
            return
        self.rollout = rollout
        fields = {
            "champion": rollout.champion.generation,
            "experiments": [experiment.name for experiment in rollout.running],
        }
        _log.info("rollout", extra=fields)
        for told in rollout.unserved:
            _log.error("%s", told)
        for told in rollout.over:
            _log.info("%s", told)

    def late(self) -> list[str]:
        """That another champion than the registry's is served, and why; empty if it is not so."""
        if self.overdue is None or self.rollout is None:
            return []
        if self.overdue.digest == self.rollout.champion.digest:
            return []
        wanted, served = self.overdue.generation, self.rollout.champion.generation
        why = f"{wanted} is {self._fleet.described(self.overdue)}"
        return [f"the registry's champion is {wanted}, but {served} is still served: {why}"]

    def unserved(self) -> list[str]:
        """The running tests that are not served, and why."""
        return [] if self.rollout is None else [*self.rollout.unserved, *self.rollout.over]
