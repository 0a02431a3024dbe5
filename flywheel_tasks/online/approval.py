"""What an approver is shown, and the record of their answer, bound to it by digests."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from flywheel_tasks.online.analysis_text import analysis_markdown
from flywheel_tasks.pipeline.generation_ids import current
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import bytes_digest, file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import Registry, open_registry
from flywheel_tasks.storage.registry_state import Decision, Experiment, Kind, RegistryError

POLICY = "models/policy"
VERDICT = "gate/verdict.json"
GATE_TEXT = "gate/approval.md"
LAUNCHABLE = ("pass", "warn")  # a warning is for the approver to weigh; all else blocks


class ApprovalError(ValueError):
    """There is nothing to approve, or what was shown is no longer what is there."""


class GateBlockedError(ApprovalError):
    """The gate's verdict blocks; the message has its reasons."""


class SupersededError(ApprovalError):
    """The champion that a model was made from is not champion any more."""


@dataclass(frozen=True)
class Request:
    """A question to a person.

    Attributes:
        kind: launch or promotion.
        generation: whose model.
        model_digest: tree digest of the model.
        evidence_digest: of the verdict (launch) or of the analysis (promotion).
        body: what they read, Markdown, digests included.
    """

    kind: Kind
    generation: str
    model_digest: str
    evidence_digest: str
    body: str


def registry_of(root: Path) -> Registry:
    """The workspace's registry."""
    return open_registry(load_settings(root / "params.yaml").registry.location, root)


def one_running(root: Path, generation: str | None) -> Experiment | None:
    """The running test that a person means.

    Args:
        root: the workspace.
        generation: whose test; None: the only one that runs.

    Returns:
        None if it does not run.

    Raises:
        RegistryError: none was named and more than one runs: whoever decides must say which.
    """
    state = registry_of(root).state()
    names = [experiment.plan.generation for experiment in state.all_running()]
    if generation is None and len(names) > 1:
        raise RegistryError(
            f"{len(names)} tests are running ({', '.join(names)}): say which, --generation NAME"
        )
    return state.running(generation)


def blocking_reasons(verdict: Mapping[str, Any]) -> list[str]:
    """The sentences of a verdict that say why it blocks."""
    failed = [str(reason["reason"]) for reason in verdict["reasons"] if reason.get("outcome") == "block"]
    return failed or ["no reason is given"]


def _check_made(path: Path) -> None:
    if not path.exists():
        raise ApprovalError(f"{path}: not made yet: `flywheel generation run` makes it")


def passing_verdict(verdict: Path, model: Path) -> dict[str, Any]:
    """Read a gate's verdict and check that it does not block, and that it is about this model.

    Args:
        verdict: ``gate/verdict.json``.
        model: the candidate's folder.

    Raises:
        GateBlockedError: it blocks.
        ApprovalError: it or the model is not there, it is about another model, or malformed.
    """
    _check_made(verdict)
    found = read_json(verdict)
    if (
        not isinstance(found, dict)
        or not {"generation", "verdict", "model_digest", "reasons"} <= found.keys()
    ):
        raise ApprovalError(
            f"{verdict}: not a verdict: generation, verdict, model_digest, reasons must be there"
        )
    if found["verdict"] not in LAUNCHABLE:
        lines = "\n".join(f"- {line}" for line in blocking_reasons(found))
        raise GateBlockedError(f"the gate does not pass generation {found['generation']}:\n{lines}")
    _check_made(model)
    if (digest := tree_digest(model)) != found["model_digest"]:
        raise ApprovalError(f"{verdict} is about model {found['model_digest']}, but {model} is {digest}")
    return found


def _digests(model: str, evidence: str, evidence_digest: str) -> str:
    return f"\n\n---\n\n**Your answer is bound to**\n\n- model `{model}`\n- {evidence} `{evidence_digest}`\n"


def made_from_the_champion(root: Path, generation: str) -> None:
    """Make sure that the champion is still the one that a model was made from: one dropped must not come back in it.

    Args:
        root: the workspace.
        generation: of the model.

    Raises:
        SupersededError: another one is champion by now.
    """
    state, here = registry_of(root).state(), current(root)
    if here is None or here["generation"] != generation or state.champion is None:
        return
    began = here["champion"]
    if began["digest"] != state.champion.digest and state.tested(generation) is None:
        raise SupersededError(
            f"{generation} was made from {began['model']}, which is not champion any more "
            f"({state.champion.generation} is): open the next generation"
        )


def _tries(root: Path, generation: str, verdict_digest: str) -> str:
    """How often the gate has declined models of this generation: each try on the same prompts may pass by luck."""
    declined = {
        change.detail["verdict_digest"]
        for change in registry_of(root).history()
        if change.kind == "declined" and change.detail.get("generation") == generation
        if "verdict_digest" in change.detail
    }
    if not (before := len(declined - {verdict_digest})):
        return ""
    times = "once" if before == 1 else f"{before} times"
    return (
        f"\n\n**Made again.** {generation} has been declined {times} before, and was judged on the same "
        "evaluation prompts each time: a pass by luck becomes likelier with every try."
    )


def launch_request(root: Path, *, refusing: bool = False) -> Request:
    """The question whether a gated model may go into an A/B test.

    Args:
        root: the workspace.
        refusing: the answer will be no, which any model may get.

    Raises:
        GateBlockedError: the gate does not pass it: then nobody is asked.
        SupersededError: the champion is another than the one that the generation began from.
        ApprovalError: the verdict is about another model, or the gate's text is of another verdict.
    """
    verdict = passing_verdict(root / VERDICT, root / POLICY)
    if not refusing:
        made_from_the_champion(root, verdict["generation"])
    digest = file_digest(root / VERDICT)
    try:
        body = (root / GATE_TEXT).read_text(encoding="utf-8").rstrip()
    except FileNotFoundError as error:  # a user was forgotten whom it may have quoted
        raise ApprovalError(f"{GATE_TEXT} is gone: run stage gate again") from error
    # The gate's text names what it is about. Without these digests its figures are another model's.
    if verdict["model_digest"] not in body or digest not in body:
        raise ApprovalError(f"{GATE_TEXT} is not of this verdict: run stage gate again")
    body += _tries(root, verdict["generation"], digest)
    return Request("launch", verdict["generation"], verdict["model_digest"], digest, body)


def recorded_analysis(registry: Registry, generation: str) -> tuple[dict[str, Any], str]:
    """The analysis that the registry holds for a running experiment, and its digest.

    Raises:
        ApprovalError: there is none, or its bytes are not what was recorded.
    """
    experiment = registry.state().running(generation)
    if experiment is None or experiment.analysis is None:
        raise ApprovalError(f"generation {generation} has no running experiment with an analysis")
    data = registry.get_generation(generation, analysis_name(experiment.analysis.digest))
    if (digest := bytes_digest(data)) != experiment.analysis.digest:
        raise ApprovalError(
            f"the kept analysis of {generation} is {digest}, not {experiment.analysis.digest}"
        )
    return orjson.loads(data), digest


def analysis_name(digest: str) -> str:
    """Name under which the registry keeps an analysis."""
    return f"analysis-{digest.removeprefix('sha256:')}.json"


def promotion_request(root: Path, generation: str) -> Request:
    """The question whether a tested model becomes champion.

    Raises:
        ApprovalError: there is no valid analysis: then nobody is asked.
    """
    analysis, digest = recorded_analysis(registry_of(root), generation)
    if analysis["result"] != "valid":
        raise ApprovalError(f"the A/B test of {generation} is invalid: {'; '.join(analysis['reasons'])}")
    body = analysis_markdown(analysis) + _digests(analysis["model_digest"], "analysis", digest)
    return Request("promotion", generation, analysis["model_digest"], digest, body)


def request_of(
    root: Path,
    kind: Literal["launch", "promotion"],
    generation: str | None = None,
    *,
    refusing: bool = False,
) -> Request:
    """The question of either kind; a promotion's generation may be left out if only one test runs.

    Raises:
        GateBlockedError: the gate does not pass the model.
        ApprovalError: there is nothing to approve.
        RegistryError: no generation is named and more than one test runs.
    """
    if kind == "launch":
        return launch_request(root, refusing=refusing)
    if generation is None:
        running = one_running(root, None)
        if running is None:
            raise ApprovalError("no experiment is running")
        generation = running.plan.generation
    return promotion_request(root, generation)


def record_answer(
    root: Path, shown: Request, *, decision: Decision, by: str, at: datetime | None = None
) -> None:
    """Write an answer to the registry, with the digests that were shown.

    An approval of something that has changed since it was shown is refused; a no is recorded in any case.

    Args:
        root: the workspace.
        shown: the question as it was shown.
        decision: the answer; ``timeout`` when nobody gave one in time.
        by: who answered.
        at: when; by default now.

    Raises:
        ApprovalError: an approval, but what was shown is no longer what is there.
    """
    if decision == "approve":
        now = request_of(root, shown.kind, shown.generation)
        was = (shown.generation, shown.model_digest, shown.evidence_digest)
        if (now.generation, now.model_digest, now.evidence_digest) != was:
            raise ApprovalError(
                f"the {shown.kind} that {by} approved was of model {shown.model_digest} on "
                f"{shown.evidence_digest}; now they are {now.model_digest} and {now.evidence_digest}. "
                "Nothing is approved: ask again"
            )
    evidence = "verdict_digest" if shown.kind == "launch" else "analysis_digest"
    registry_of(root).record_approval(
        shown.kind,
        generation=shown.generation,
        model_digest=shown.model_digest,
        decision=decision,
        by=by,
        at=at,
        **{evidence: shown.evidence_digest},
    )
