"""The end of an A/B test: the candidate becomes champion, or is dropped."""

from pathlib import Path

from flywheel_tasks.online.approval import POLICY, VERDICT, recorded_analysis, registry_of
from flywheel_tasks.online.launch import LaunchError, model_ref
from flywheel_tasks.online.model_card import keep_card, keep_evidence
from flywheel_tasks.pipeline import lineage
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import ModelRef, State


class PromotionError(ValueError):
    """A candidate cannot be promoted; the message says why and what to do."""


def _check_files(root: Path, candidate: ModelRef) -> None:
    """The workspace's model is the candidate, by its contents and by DVC's hash, under which it is kept."""
    if (found := tree_digest(root / POLICY)) != candidate.digest:
        raise PromotionError(
            f"{POLICY} is {found}, but the candidate of {candidate.generation} is {candidate.digest}; "
            "bring it back with dvc checkout, from the commit of its launch"
        )
    md5 = lineage.dvc_output(root, POLICY)["md5"]
    if candidate.dvc is None or candidate.dvc.md5 != md5:
        raise PromotionError(
            f"dvc.lock has {md5} for {POLICY}, the candidate was launched as {candidate.dvc}"
        )


def promote(root: Path, generation: str, by: str) -> ModelRef:
    """Make a generation's candidate champion; called again, it returns the champion.

    Args:
        root: the workspace.
        generation: whose candidate.
        by: who promotes it.

    Raises:
        PromotionError: the model's files are not the candidate.
        ApprovalError: the kept analysis is not the recorded one.
        RegistryError: no valid analysis, or no matching approval.
    """
    registry = registry_of(root)
    state = registry.state()
    if state.champion is not None and state.champion.generation == generation:
        keep_card(registry, generation)  # a promotion that was killed in between left none
        return state.champion
    if (candidate := state.candidates.get(generation)) is not None:
        _check_files(root, candidate)
        recorded_analysis(registry, generation)
    champion = registry.promote(generation, by=by).champion
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
    tests = [item for item in state.experiments.values() if item.plan.generation == generation]
    if not tests:
        if not _is_declined(registry, generation, reason):
            state = registry.decline(generation, reason, by=by)
        _keep_declined(root, registry, generation)
        return state
    if tests[-1].status != "rolled_back":
        state = registry.rollback(generation, reason, by=by)
    keep_card(registry, generation)
    return state


def _is_declined(registry: Registry, generation: str, reason: str) -> bool:
    """Whether a generation was declined for this reason, and for no other since."""
    told = [
        change.detail.get("reason")
        for change in registry.history()
        if change.kind == "declined" and change.detail.get("generation") == generation
    ]
    return told[-1:] == [reason]


def _keep_declined(root: Path, registry: Registry, generation: str) -> None:
    """Keep the card of a model that was not launched, if the workspace has its verdict; one never made has none."""
    verdict = root / VERDICT
    if not verdict.exists() or read_json(verdict).get("generation") != generation:
        return
    try:
        keep_evidence(registry, root, generation, model_ref(root, generation))
    except (LaunchError, FileNotFoundError):
        return
    keep_card(registry, generation)
