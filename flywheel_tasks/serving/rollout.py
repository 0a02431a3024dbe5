"""Who talks to which model: the registry's champion and running experiments, and a user's arm in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from flywheel_tasks.online.assignment import arm_of
from flywheel_tasks.storage.registry_state import Experiment, ModelRef, State


class RoutingError(ValueError):
    """A request names an arm that is not there."""


@dataclass(frozen=True)
class Running:
    """A running experiment with its models.

    Attributes:
        name: the experiment.
        plan: its plan, as :func:`flywheel_tasks.online.assignment.assign` takes it.
        models: by arm.
        ends_at: from then on nobody is in the test: no exposure counts, and nobody looks at its guardrails.
        overrides: arms of its staff, by :func:`flywheel_tasks.online.assignment.staff_key`.
    """

    name: str
    plan: Mapping[str, Any]
    models: Mapping[str, ModelRef]
    ends_at: datetime
    overrides: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """Where a request goes.

    Attributes:
        model: whose reply it should be.
        experiment: the experiment that says so, or None.
        arm: the user's arm there, or None.
        exposes: whether a reply of that model is an exposure (not if staff chose the arm).
    """

    model: ModelRef
    experiment: str | None = None
    arm: str | None = None
    exposes: bool = False


@dataclass(frozen=True)
class Rollout:
    """The registry, as far as routing asks.

    Attributes:
        champion: who answers everybody else, and in whose place a broken candidate's users are served.
        running: experiments, in the registry's order.
        unserved: of each other experiment that runs in the registry, that it is not served and why.
        over: the same of each whose time is over and that waits for its answer, which is as it should be.
    """

    champion: ModelRef
    running: tuple[Running, ...] = ()
    unserved: tuple[str, ...] = ()
    over: tuple[str, ...] = ()

    def models(self) -> list[ModelRef]:
        """Every model that may be asked, the champion first."""
        found = {self.champion.digest: self.champion}
        for experiment in self.running:
            found |= {model.digest: model for model in experiment.models.values()}
        return list(found.values())

    def under(self, champion: ModelRef) -> "Rollout":
        """The same while another champion is served.

        Tests of the one that is not there wait for it: only their candidates' users would be exposed.
        """
        if champion.digest == self.champion.digest:
            return self
        away = self.champion.digest
        waiting = {
            item.name for item in self.running if away in {model.digest for model in item.models.values()}
        }
        told = (
            f"experiment {name} is not served: it waits for {self.champion.generation}"
            for name in sorted(waiting)
        )
        running = tuple(item for item in self.running if item.name not in waiting)
        return replace(self, champion=champion, running=running, unserved=(*self.unserved, *told))

    def route(self, user_id: str, at: datetime, arm: str | None = None) -> Route:
        """The route of a user.

        Args:
            user_id: the user.
            at: the time that an exposure would have; a registry out of reach keeps no test running beyond its end.
            arm: what staff ask for: ``champion``, or an arm's name; None leaves it to the draw.

        Raises:
            RoutingError: there is no such arm now.
        """
        if arm == "champion":
            return Route(self.champion)
        for experiment in self.running:
            if at >= experiment.ends_at:
                continue
            by_chance = arm is None
            drawn = arm
            if drawn is None:
                drawn, by_chance = arm_of(experiment.plan, experiment.overrides, user_id)
            if drawn is not None and drawn in experiment.models:
                return Route(experiment.models[drawn], experiment.name, drawn, exposes=by_chance)
        if arm is not None:
            raise RoutingError("there is no such arm now")  # a client is told this: nothing that was sent
        return Route(self.champion)


def _running(experiment: Experiment, state: State) -> Running | None:
    """An experiment with its models; None if the registry does not have them all."""
    # A test goes on against the champion of its start, when other tests' candidates have become champion meanwhile.
    # Tests that were started before the registry kept that model with them have it for one promotion.
    found = (state.previous, state.champion, experiment.control, *state.candidates.values())
    known = {model.digest: model for model in found if model is not None}
    models: dict[str, ModelRef] = {
        arm.name: known[arm.digest] for arm in experiment.plan.arms if arm.digest in known
    }
    if len(models) < len(experiment.plan.arms):
        return None
    overrides = {item.user: item.arm for item in experiment.overrides}
    plan = experiment.plan
    return Running(plan.experiment, plan.model_dump(mode="json"), models, experiment.ends_at, overrides)


def rollout_of(state: State, now: datetime) -> Rollout | None:
    """What the registry's state means for routing; None before there is a champion."""
    if state.champion is None:
        return None
    tests = [item for item in state.experiments.values() if item.status == "running"]
    over = [item for item in tests if now >= item.ends_at]
    found = [(item, _running(item, state)) for item in tests if item not in over]
    return Rollout(
        state.champion,
        tuple(running for _, running in found if running is not None),
        tuple(
            f"experiment {item.plan.experiment} is not served: the registry lacks a model of it"
            for item, running in found
            if running is None
        ),
        tuple(
            f"experiment {item.plan.experiment} is not served: its time was over at {item.ends_at:%Y-%m-%d %H:%M} UTC, "
            "and it waits for its answer"
            for item in over
        ),
    )
