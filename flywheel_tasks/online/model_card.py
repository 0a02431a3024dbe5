"""The model card of a generation, made from the registry alone: lineage, gate, A/B test.

A model folder is bound by its digest from the gate on, so nothing is ever added to it. The card is an object of the
registry (``generations/<id>/README-<digest>.md``), written when the generation is promoted, rolled back or declined;
and the ``README.md`` beside the weights, where Hugging Face looks for it, of a published copy.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.online.analysis_text import analysis_markdown
from flywheel_tasks.online.approval import VERDICT, analysis_name, registry_of
from flywheel_tasks.pipeline.model_files import model_folder
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest, tree_digest
from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.storage.registry import Registry, evidence_name
from flywheel_tasks.storage.registry_state import Experiment, ModelRef, RegistryError, State

_EVIDENCE = "evidence.json"  # of generations that an earlier version launched or declined


class CardError(ValueError):
    """A card cannot be made, or a model cannot be published; the message says why."""


def keep_evidence(
    registry: Registry, root: Path, generation: str, model: ModelRef, *, tested: bool = True
) -> str:
    """Keep what a card will tell of a generation: verdict, the stages' metrics, which model it is; once a verdict.

    A generation may be declined and made again with other settings, so each verdict has an account of its own.

    Args:
        registry: the registry.
        root: the workspace.
        generation: whose.
        model: the candidate.
        tested: whether a test of it starts; else what stage ``launch`` left here is another generation's.

    Returns:
        digest of the verdict's file.

    Raises:
        FileNotFoundError: the workspace has no verdict.
    """
    metrics = {
        path.stem: orjson.loads(path.read_bytes())
        for path in sorted((root / "metrics").glob("*.json"))
        if tested or path.stem != "launch"
    }
    verdict = (root / VERDICT).read_bytes()
    digest = bytes_digest(verdict)
    evidence = {"verdict": orjson.loads(verdict), "metrics": metrics, "model": model.model_dump(mode="json")}
    data = orjson.dumps(evidence, option=orjson.OPT_SORT_KEYS)
    try:
        registry.put_generation(generation, evidence_name(digest), data)
    except RegistryError:  # launch's own metrics may differ at a repeated start; the first account stands
        registry.get_generation(generation, evidence_name(digest))
    return digest


def _kept(registry: Registry, generation: str, name: str) -> dict[str, Any]:
    try:
        return dict(orjson.loads(registry.get_generation(generation, name)))
    except RegistryError:
        return {}


def _declines(registry: Registry, generation: str) -> list[dict[str, Any]]:
    """Why a generation was not launched, each time, and the digests of the verdicts; the newest first."""
    return [
        change.detail
        for change in reversed(registry.history())
        if change.kind == "declined" and change.detail.get("generation") == generation
    ]


def last_declined(registry: Registry, generation: str) -> dict[str, Any]:
    """The reason why a generation was not launched the last time, and the digest of its verdict; or nothing."""
    return next(iter(_declines(registry, generation)), {})


def _evidence(registry: Registry, generation: str, experiment: Experiment | None) -> dict[str, Any]:
    """What was kept of the model that was launched; of one that never was, of the one last declined."""
    if experiment is not None:
        digest = experiment.plan.verdict_digest
    else:
        told = (detail.get("verdict_digest", "") for detail in _declines(registry, generation))
        digest = next(filter(None, told), "")
    if digest and (found := _kept(registry, generation, evidence_name(digest))):
        return found
    earlier = _kept(registry, generation, _EVIDENCE)
    if experiment is not None and earlier.get("model", {}).get("digest") != experiment.plan.model_digest:
        return {}  # of a model that was declined before this one was made
    return earlier


def _model(state: State, registry: Registry, generation: str) -> ModelRef:
    known = [state.champion, state.previous, *state.candidates.values()]
    for model in known:
        if model is not None and model.generation == generation:
            return model
    for change in reversed(registry.history()):
        then = change.state
        for model in (then.champion, *then.candidates.values()):
            if model is not None and model.generation == generation:
                return model
    if (declined := _evidence(registry, generation, state.tested(generation)).get("model")) is not None:
        return ModelRef.model_validate(declined)
    raise CardError(f"the registry knows no model of generation {generation}")


def _front_matter(model: ModelRef, inputs: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    """The metadata of the Hugging Face hub, checked by its own library."""
    from huggingface_hub import EvalResult, ModelCardData

    params = load_yaml(inputs.get("params") or "{}") or {}
    base = (params.get("base") or {}).get("policy")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="ab-test",
            dataset_name="A/B test" + (" (simulated users)" if analysis.get("simulated") else ""),
            metric_type=f"{name}_lift_percent",
            metric_value=found["lift_percent"]["value"],
        )
        for name, found in sorted(analysis.get("metrics", {}).items())
        if name in ("breadth", "depth") and found["lift_percent"]["value"] is not None
    ]
    data = ModelCardData(
        model_name=f"characterflywheel-{model.generation}",
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["characterflywheel", "character-chat"],
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _lineage(model: ModelRef, inputs: Mapping[str, Any]) -> list[str]:
    logs = inputs.get("logs") or {}
    champion = inputs.get("champion") or {}
    dvc = f"`{model.dvc.path}`, `{model.dvc.md5}`" if model.dvc else "none"
    rows = [
        ("model (tree digest)", f"`{model.digest}`"),
        ("DVC output", dvc),
        ("code (git)", f"`{model.code_version}`"),
        ("data (digest of dvc.lock)", f"`{model.data_version}`"),
        ("logs", f"{len(logs.get('partitions', []))} partitions of `{logs.get('location', 'unknown')}`"),
        ("started from", f"generation {champion.get('generation', 'none')}"),
    ]
    return ["## Lineage", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _gate(evidence: Mapping[str, Any]) -> list[str]:
    verdict = evidence.get("verdict")
    if not verdict:
        return ["## Gate", "", "No verdict: this model went through no gate.", ""]
    lines = [f"## Gate: {verdict['verdict']}", "", "| metric | outcome | |", "|---|---|---|"]
    lines += [
        f"| {_cell(reason.get('metric'))} | {_cell(reason.get('outcome'))} | {_cell(reason.get('reason'))} |"
        for reason in verdict.get("reasons", [])
    ]
    return [*lines, ""]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _declined(registry: Registry, generation: str) -> str:
    """Why a generation was not launched."""
    if found := last_declined(registry, generation):
        return f"Not launched: {found.get('reason', 'no reason was given').rstrip('.')}."
    return "Not tested."


def _test(experiment: Experiment | None, analysis: Mapping[str, Any], untested: str) -> list[str]:
    if experiment is None:
        return ["## A/B test", "", untested, ""]
    lines = [
        f"{experiment.started_at:%Y-%m-%d} to {experiment.ends_at:%Y-%m-%d}, {experiment.status.replace('_', ' ')}"
        + (f": {experiment.end_reason}" if experiment.end_reason else "")
        + "."
    ]
    shown = analysis_markdown(analysis) if analysis else "## A/B test\n\nNot analysed."
    return [shown, "", *lines, ""]


def make_card(registry: Registry, generation: str) -> str:
    """The card of a generation that was launched or declined, as it stands in the registry.

    Args:
        registry: the registry.
        generation: whose model.

    Returns:
        Markdown with YAML front matter.

    Raises:
        CardError: the registry knows no model of it.
    """
    from huggingface_hub import ModelCard

    state = registry.state()
    model = _model(state, registry, generation)
    experiment = state.tested(generation)
    inputs = _kept(registry, generation, "inputs.json")
    evidence = _evidence(registry, generation, experiment)
    analysis: dict[str, Any] = {}
    if experiment is not None and experiment.analysis is not None:
        analysis = _kept(registry, generation, analysis_name(experiment.analysis.digest))
    champion = state.champion is not None and state.champion.generation == generation
    body = [
        f"# CharacterFlywheel, generation {generation}",
        "",
        "A character-chat policy" + (", the champion when this card was written." if champion else "."),
        "",
        *_lineage(model, inputs),
        *_gate(evidence),
        *_test(experiment, analysis, _declined(registry, generation)),
    ]
    if evidence.get("metrics"):
        told = orjson.dumps(evidence["metrics"], option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
        body += ["## Metrics of the stages", "", "```json", told, "```", ""]
    text = f"---\n{_front_matter(model, inputs, analysis)}\n---\n\n" + "\n".join(body)
    return str(ModelCard(text).content)


def keep_card(registry: Registry, generation: str) -> str:
    """Write a generation's card into the registry; returns the object's name."""
    data = make_card(registry, generation).encode()
    name = f"README-{bytes_digest(data).removeprefix('sha256:')[:16]}.md"
    registry.put_generation(generation, name, data)
    return name


def publish(root: Path, generation: str, folder: Path) -> Path:
    """Copy a generation's model with its card, ready for a hub.

    Args:
        root: the workspace, which holds the model's files as candidate or as champion.
        generation: whose model.
        folder: the copy; must not exist.

    Returns:
        the copy's ``README.md``.

    Raises:
        CardError: the folder exists.
        ModelFilesError: the model is not here, and DVC does not bring it.
    """
    registry = registry_of(root)
    model = _model(registry.state(), registry, generation)
    if folder.exists():
        raise CardError(f"{folder} exists already")
    source = model_folder(root, model)
    card = make_card(registry, generation)
    with atomic_path(folder) as temporary:
        shutil.copytree(source, temporary)
        if tree_digest(temporary) != model.digest:
            raise CardError(f"{source} changed while it was copied")
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder / "README.md"
