"""What becomes of a candidate: champion after its A/B test, dropped, or declined before it has one."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel_tasks.online.approval import (
    VERDICT,
    blocking_reasons,
    recorded_analysis,
    registry_of,
)
from flywheel_tasks.online.kept_spools import drop_others
from flywheel_tasks.online.launch import LaunchError, model_ref
from flywheel_tasks.online.model_card import CardError, keep_card, keep_evidence, last_declined
from flywheel_tasks.pipeline.model_files import ModelLostError, model_folder
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import WITH_CHAMPION, ModelRef, State


class PromotionError(ValueError):
    """A candidate cannot be promoted; the message says why and what to do."""


def _check_files(root: Path, candidate: ModelRef) -> None:
    """The candidate is there, or DVC brings it by its hash, whatever the workspace has made since its launch."""
    if candidate.dvc is None:
        raise PromotionError(
            f"the candidate of {candidate.generation} was launched without DVC's hash of its files"
        )
    try:
        model_folder(root, candidate)
    except ModelLostError as error:
        raise PromotionError(str(error)) from error


def promote(root: Path, generation: str, by: str) -> ModelRef:
    """Make a generation's candidate champion; called again, it returns the champion.

    Args:
        root: the workspace.
        generation: whose candidate.
        by: who promotes it.

    Raises:
        ModelFilesError: the candidate's files are not here, and DVC does not bring them now.
        PromotionError: DVC has lost them, or nothing says under which hash it keeps them.
        ApprovalError: the kept analysis is not the recorded one.
        RegistryError: no valid analysis, or no matching approval.
    """
    registry = registry_of(root)
    state = registry.state()
    if state.champion is not None and state.champion.generation == generation:
        drop_others(root, state.all_running())
        keep_card(registry, generation)  # a promotion that was killed in between left none
        return state.champion
    if (candidate := state.candidates.get(generation)) is not None:
        _check_files(root, candidate)
        recorded_analysis(registry, generation)
    state = registry.promote(generation, by=by)
    drop_others(root, state.all_running())
    champion = state.champion
    assert champion is not None
    keep_card(registry, generation)
    return champion


def rollback(root: Path, generation: str, reason: str, by: str) -> State:
    """Drop a generation's candidate and say why; the champion stays.

    Called again, it changes nothing, but keeps the card that a kill in between has left unkept.

    Args:
        root: the workspace.
        generation: whose candidate; one that was never launched is recorded as declined.
        reason: for the history.
        by: who does it.

    Raises:
        RegistryError: its experiment ended in another way.
    """
    registry = registry_of(root)
    state = registry.state()
    tested = state.tested(generation)
    if tested is None:
        return decline(root, generation, reason, by)
    if tested.status != "rolled_back":
        state = registry.rollback(generation, reason, by=by)
    drop_others(root, state.all_running())
    keep_card(registry, generation)
    return state


@dataclass(frozen=True)
class Restored:
    """What going back to an earlier champion has come to.

    Attributes:
        state: the registry's.
        ended: the generations whose tests ended.
        cardless: why there is no card yet, by generation of a test that ended so; the same command again keeps it.
    """

    state: State
    ended: tuple[str, ...]
    cardless: Mapping[str, str]


def restore(root: Path, reason: str, by: str, to: str | None = None) -> Restored:
    """Make an earlier champion champion again; all running tests end with it, and their cards are kept.

    Called again, also where it is refused then, it keeps the cards that a kill or an error has left unkept.

    Args:
        root: the workspace.
        reason: for the history.
        by: who does it.
        to: its generation; None: the one before the last promotion.

    Raises:
        RegistryError: there is no such champion before, or it is champion now.
        RegistryConflict: another change came first.
    """
    registry = registry_of(root)
    before = registry.state()
    over = {name for name, test in before.experiments.items() if test.status != "running"}
    left = _keep_cards(registry, _ended_with_champion(before))
    state = registry.restore(reason, by=by, to=to)
    drop_others(root, state.all_running())
    # A test that started just before the change has ended with it, too.
    rolled_back = {name: test for name, test in state.experiments.items() if test.status == "rolled_back"}
    ended = tuple(test.plan.generation for name, test in rolled_back.items() if name not in over)
    return Restored(state=state, ended=ended, cardless=left | _keep_cards(registry, ended))


def _ended_with_champion(state: State) -> list[str]:
    """The generations whose tests a restoration has ended."""
    tests = state.experiments.values()
    return [test.plan.generation for test in tests if (test.end_reason or "").startswith(WITH_CHAMPION)]


def _keep_cards(registry: Registry, generations: Iterable[str]) -> dict[str, str]:
    """Keep the cards of generations; why not, of those where that fails: the champion is what matters."""
    failed = {}
    for generation in generations:
        try:
            keep_card(registry, generation)
        except Exception as error:
            failed[generation] = f"{type(error).__name__}: {error}"
    return failed


def decline(root: Path, generation: str, reason: str, by: str) -> State:
    """Record that a generation's model is not launched, and keep its card; called again, it changes nothing.

    The generation may still be made again with other settings, and launched. One that was launched before stays what
    it is: nothing is recorded then.

    Args:
        root: the workspace. It need not hold the generation; then there is a card only if the registry has kept a
            verdict on a model of it before.
        generation: which one.
        reason: for the history.
        by: who declines.

    Raises:
        RegistryError: it is launched just now, from elsewhere.
    """
    registry = registry_of(root)
    state = registry.state()
    if state.tested(generation) is not None:
        return state
    told = {"reason": reason} | _kept_verdict(root, registry, generation)
    if last_declined(registry, generation) != {"generation": generation} | told:
        state = registry.decline(generation, by=by, **told)
    with suppress(CardError):  # the registry knows no model of it
        keep_card(registry, generation)
    return state


def why_blocked(verdict: Mapping[str, Any]) -> str:
    """The reasons of a verdict that blocks, in one line."""
    return "the gate blocks: " + "; ".join(reason.rstrip(".") for reason in blocking_reasons(verdict))


def decline_blocked(root: Path, by: str) -> None:
    """:func:`decline` the generation whose verdict, in the workspace, blocks."""
    verdict = read_json(root / VERDICT)
    decline(root, verdict["generation"], why_blocked(verdict), by)


def _kept_verdict(root: Path, registry: Registry, generation: str) -> dict[str, str]:
    """Keep what the card of a model will tell; the digest of its verdict, or nothing if there is no such model."""
    try:
        verdict, model = read_json(root / VERDICT), model_ref(root, generation)
    except (LaunchError, FileNotFoundError):
        return {}
    if (verdict.get("generation"), verdict.get("model_digest")) != (generation, model.digest):
        return {}
    return {"verdict_digest": keep_evidence(registry, root, generation, model, tested=False)}
