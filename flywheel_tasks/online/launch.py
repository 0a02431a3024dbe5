"""An approved candidate becomes the plan of an A/B test, and the test starts."""

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flywheel_tasks.online.approval import POLICY, VERDICT, passing_verdict, registry_of
from flywheel_tasks.online.event_errors import EventsError
from flywheel_tasks.online.event_source import read_from, rule_of
from flywheel_tasks.online.event_trial import try_events
from flywheel_tasks.online.model_card import keep_evidence
from flywheel_tasks.pipeline import earlier_pairs, lineage, reward_model_pin
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.pipeline.trained_on import record
from flywheel_tasks.settings import Launch, Settings, load_settings
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry import PROFILE, SPLIT, Registry, open_registry
from flywheel_tasks.storage.registry_state import Arm, DvcRef, Experiment, ModelRef, Plan, Rule, State

PLAN = "launch/plan.json"
# Of the data that the candidate was made from; the next generations' data is compared with it.
DATA_PROFILE = "launch/profile.json"
SPLIT_RECORD = "launch/split.json"
_log = logging.getLogger(__name__)


class LaunchError(ValueError):
    """A plan cannot be made or started; the message says why and what to do."""


def make_plan(
    generation: Mapping[str, Any],
    verdict: Mapping[str, Any],
    verdict_digest: str,
    launch: Launch,
    rule: Rule,
) -> Plan:
    """The plan of a generation's A/B test, candidate against the champion it started from.

    Args:
        generation: ``inputs/generation.json``.
        verdict: ``gate/verdict.json``.
        verdict_digest: digest of that file.
        launch: the setting of that name.
        rule: by which the test will be decided.

    Raises:
        LaunchError: verdict and generation do not belong together.
    """
    name, champion, model = generation["generation"], generation["champion"], verdict["model_digest"]
    if verdict["generation"] != name:
        raise LaunchError(
            f"gate/verdict.json is of generation {verdict['generation']}, the open one is {name}"
        )
    if model == champion["digest"]:
        raise LaunchError(
            f"generation {name}: the candidate is the champion itself; there is nothing to test"
        )
    return Plan(
        experiment=name,
        generation=name,
        salt=f"{name}-{model.removeprefix('sha256:')[:16]}",
        layer=launch.layer,
        rule=rule,
        arms=(
            Arm(
                name="control", share=launch.traffic_share, model=champion["model"], digest=champion["digest"]
            ),
            Arm(name="candidate", share=launch.traffic_share, model=name, digest=model),
        ),
        verdict_digest=verdict_digest,
        model_digest=model,
    )


def run(io: StageIO) -> Mapping[str, Any]:
    """Stage ``launch``.

    Raises:
        GateBlockedError: the gate does not pass the model.
        RegistryError: no matching approval is recorded.
    """
    file = io.dep(VERDICT)
    verdict, digest = passing_verdict(file, io.dep(POLICY)), file_digest(file)
    registry = open_registry(io.settings.registry.location, io.root)
    registry.state().require_approval("launch", verdict["generation"], verdict["model_digest"], digest)
    launch, rule = io.settings.launch, rule_of(io.settings)
    plan = make_plan(read_json(io.dep("inputs/generation.json")), verdict, digest, launch, rule)
    write_json(plan.model_dump(mode="json"), io.out(PLAN))
    write_json(read_json(io.dep("data/validated/profile.json")), io.out(DATA_PROFILE))
    write_json(read_json(io.dep("data/split/record.json")), io.out(SPLIT_RECORD))
    return {"traffic_share": launch.traffic_share, "arms": len(plan.arms)}


def read_plan(root: Path) -> Plan:
    """The plan that stage ``launch`` wrote.

    Raises:
        LaunchError: there is none yet.
    """
    if not (root / PLAN).exists():
        raise LaunchError(
            f"{PLAN}: there is no plan of a test yet: flywheel generation run writes it once the gate passes the model "
            "and its launch is approved"
        )
    return Plan.model_validate(read_json(root / PLAN))


def _running(state: State, generation: str, model_digest: str, verdict_digest: str) -> Experiment | None:
    """The running test of a model on a verdict; None if its generation was never launched."""
    test, now = state.tested(generation), (model_digest, verdict_digest)
    if test is None:
        return None
    if test.status != "running":
        raise LaunchError(f"{generation} has been tested already ({test.status}); open the next generation")
    if (then := (test.plan.model_digest, test.plan.verdict_digest)) != now:
        raise LaunchError(
            f"the test of {generation} runs already, of model {then[0]} on verdict {then[1]}; now they are {now[0]} "
            f"and {now[1]}. Decide that test by flywheel ab analyze, or end it: flywheel ab stop --generation "
            f"{generation} --by NAME --reason WHY"
        )
    return test


def running_test(root: Path) -> Experiment | None:
    """The running test of the workspace's model on its verdict; None if its generation was never launched.

    Raises:
        GateBlockedError: the gate does not pass the model.
        ApprovalError: there is no verdict, or it is about another model.
        LaunchError: the generation's test is over, or runs with another model or verdict: it gets no second one.
    """
    verdict = passing_verdict(root / VERDICT, root / POLICY)
    shown = (verdict["model_digest"], file_digest(root / VERDICT))
    return _running(registry_of(root).state(), verdict["generation"], *shown)


def start(root: Path, by: str) -> Experiment:
    """Start the A/B test of ``launch/plan.json``, once; called again, it returns the running test.

    The plan of a running test stands. One that was made since, from other settings, is for no other test of this model.

    DVC may have restored the plan from its cache without running the stage: model, verdict and approval are
    checked here again.

    Args:
        root: the workspace.
        by: who starts it.

    Raises:
        LaunchError: there is no plan; the generation was launched with another model or verdict, or its test is over;
            model, verdict or events are not what the plan is for, the tests that run leave it too few users, or the
            events of ``ab.events`` could never be read (tables may come later), or tell a guardrail.
        RegistryError: the registry refuses it (no matching approval, another test runs, ...).
    """
    plan = read_plan(root)
    registry = registry_of(root)
    state = registry.state()
    running = _running(state, plan.generation, plan.model_digest, plan.verdict_digest)
    if running is not None:
        if running.plan.model_copy(update={"excludes": (), "read_from": ""}) != plan:
            _log.warning("test %s goes on by the plan of its start; %s is another", plan.experiment, PLAN)
        _keep_records(registry, root, plan.generation)
        keep_evidence(registry, root, plan.generation, model_ref(root, plan.generation))
        return running
    verdict = passing_verdict(root / VERDICT, root / POLICY)
    found = (verdict["model_digest"], file_digest(root / VERDICT))
    if found != (plan.model_digest, plan.verdict_digest):
        raise LaunchError(
            f"{PLAN} is for model {plan.model_digest} and verdict {plan.verdict_digest}, but they are "
            f"{found[0]} and {found[1]}; run stage launch again (flywheel generation run)"
        )
    try:
        beside = plan.beside(item.plan for item in state.all_running())
    except ValidationError as error:  # it was a plan before: what it lacks is users
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise LaunchError(
            f"{PLAN}: {why}; wait for their end, or take a smaller launch.traffic_share"
        ) from None
    settings = load_settings(root / "params.yaml")
    _check_latency(plan, settings)
    try:
        try_events(settings, root, plan)
    except EventsError as error:  # no retry helps
        raise LaunchError(f"the test does not start: {error}") from None
    beside = beside.model_copy(update={"read_from": read_from(settings)})
    model = model_ref(root, plan.generation)
    experiment = registry.start_experiment(
        beside,
        model,
        by=by,
        duration=timedelta(minutes=plan.rule.duration_minutes),
    )
    _keep_records(registry, root, plan.generation)
    keep_evidence(registry, root, plan.generation, model)
    return experiment


def _check_latency(plan: Plan, settings: Settings) -> None:
    """Refuse a plan that was made for simulated users, and lacks a guardrail for that, for a test of real ones."""
    planned, wanted = (set(rule.guardrails) & {"latency_ms"} for rule in (plan.rule, rule_of(settings)))
    if planned != wanted:
        raise LaunchError(
            f"{PLAN} does not fit params.yaml: of a test on {read_from(settings)} latency_ms is "
            f"{'a' if wanted else 'no'} guardrail, and of the plan it is {'one' if planned else 'none'}; "
            "run stage launch again (flywheel generation run)"
        )


def _keep_records(registry: Registry, root: Path, generation: str) -> None:
    """A launched generation's data is accepted: its profile, splits, reward models, pairs, whose data it is; once.

    Only a launch by a release that made no such file has none.
    """
    record(root, generation)
    reward_model_pin.keep(registry, root, generation)
    earlier_pairs.keep(registry, root, generation)
    for file, name in ((DATA_PROFILE, PROFILE), (SPLIT_RECORD, SPLIT)):
        if (root / file).exists():
            registry.put_generation(generation, name, (root / file).read_bytes())


def model_ref(root: Path, generation: str) -> ModelRef:
    """What the workspace's candidate is: its digest, where DVC finds it, its code and data.

    Raises:
        LaunchError: ``dvc.lock`` has no hash for it.
    """
    try:
        entry = lineage.dvc_output(root, POLICY)
    except (KeyError, FileNotFoundError) as error:
        raise LaunchError(f"{POLICY} is not in dvc.lock: it was not made through DVC") from error
    return ModelRef(
        generation=generation,
        digest=tree_digest(root / POLICY),
        dvc=DvcRef(path=POLICY, md5=entry["md5"]),
        code_version=lineage.code_version(root),
        data_version=lineage.data_version(root),
    )
