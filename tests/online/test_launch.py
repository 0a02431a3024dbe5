"""Launch: only what passed the gate and was approved, and only while it is still that."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from flywheel_tasks.online import launch, promotion, simulated
from flywheel_tasks.online.approval import (
    VERDICT,
    ApprovalError,
    GateBlockedError,
    launch_request,
    record_answer,
    registry_of,
)
from flywheel_tasks.pipeline import local, runner
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.model_files import ModelFilesError
from flywheel_tasks.pipeline.pinned_data import accepted_profile, launched_splits, launched_styles
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry import Registry, evidence_name
from flywheel_tasks.storage.registry_state import RegistryError
from tests.online import people
from tests.online.conftest import MD5, approve, write_model, write_verdict


def run_launch(root: Path) -> dict:
    io = StageIO(load_graph(root / "dvc.yaml")["launch"], root, load_settings(root / "params.yaml"))
    metrics = launch.run(io)
    write_json(metrics, io.out("metrics/launch.json"))
    io.commit()
    return dict(metrics)


def test_an_approved_model_gets_a_plan_and_a_test(root: Path) -> None:
    approve(root)
    assert run_launch(root) == {"traffic_share": 0.5, "arms": 2}
    plan = read_json(root / "launch/plan.json")
    model = tree_digest(root / "models/policy")
    assert plan["experiment"] == plan["generation"] == "g0001"
    assert [arm["name"] for arm in plan["arms"]] == ["control", "candidate"]
    assert [arm["digest"] for arm in plan["arms"]] == [tree_digest(root / "inputs/champion"), model]
    assert plan["model_digest"] == model
    assert plan["verdict_digest"] == file_digest(root / "gate/verdict.json")

    experiment = launch.start(root, by="ada")
    assert experiment.ends_at - experiment.started_at == timedelta(minutes=10080)
    candidate = registry_of(root).state().candidate
    assert candidate is not None
    assert (candidate.digest, candidate.dvc.md5) == (model, MD5)
    changes = len(registry_of(root).history())
    assert launch.start(root, by="retry") == experiment
    assert len(registry_of(root).history()) == changes


@pytest.mark.parametrize(
    ("approval", "source", "status"),
    [
        ("policy_if_simulated", "simulated", "launched"),
        ("policy_if_simulated", "files", "waiting"),
        ("policy_if_simulated", None, "waiting"),  # it is not recorded whose logs they are
        ("policy", "files", "launched"),
        ("human", "simulated", "waiting"),
    ],
)
def test_by_policy_only_simulated_users_get_another_model_unless_the_setting_says_otherwise(
    root: Path, monkeypatch: pytest.MonkeyPatch, approval: str, source: str | None, status: str
) -> None:
    params, inputs = root / "params.yaml", root / "inputs/generation.json"
    # What the settings say of logs by now does not count.
    text = params.read_text().replace("source: simulated", "source: files")
    params.write_text(text.replace("local: policy_if_simulated", f"local: {approval}"))
    write_json(read_json(inputs) | ({"logs_source": source} if source else {}), inputs)
    monkeypatch.setattr(local, "open_generation", lambda root, **options: "g0001")
    monkeypatch.setattr(runner, "reproduce", lambda root, target: target == "launch" and run_launch(root))
    assert load_settings(params).approval.local == approval
    outcome = local.run_generation(root, generation=None, seed=None, say=print)
    answer = registry_of(root).state().approval("launch", "g0001")
    assert (outcome.status, answer is not None) == (status, status == "launched")


def guardrails_of(root: Path) -> list[str]:
    found: list[str] = read_json(root / "launch/plan.json")["rule"]["guardrails"]
    return found


def test_latency_is_a_guardrail_but_of_simulated_users(root: Path) -> None:
    """They have none; a plan that was made for them must not be that of a test of real ones."""
    approve(root)
    run_launch(root)
    assert "latency_ms" not in guardrails_of(root)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", "source: files"))
    with pytest.raises(
        launch.LaunchError,
        match="on files logs data/logs latency_ms is a guardrail, and of the plan it is none; run stage launch again",
    ):
        launch.start(root, by="ada")
    run_launch(root)
    assert "latency_ms" in guardrails_of(root)
    assert launch.start(root, by="ada").plan.rule == load_settings(params).ab.rule


def test_a_repeated_start_keeps_what_a_kill_left_unkept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(root)
    run_launch(root)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(launch, "_keep_records", killed)
        with pytest.raises(KeyboardInterrupt):
            launch.start(root, by="ada")
    registry = registry_of(root)
    evidence = evidence_name(file_digest(root / VERDICT))
    kept = ("profile.json", "split.json", "reward_models.json", evidence)
    assert [registry.find_generation("g0001", name) for name in kept] == [None] * 4
    launch.start(root, by="retry")
    assert None not in [registry.find_generation("g0001", name) for name in kept]
    before = {path: path.read_bytes() for path in (root / "registry").rglob("*.json")}
    launch.start(root, by="retry")
    assert {path: path.read_bytes() for path in (root / "registry").rglob("*.json")} == before


def test_a_running_test_goes_on_by_its_own_plan(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has edited the settings for the next generation must not have to end it."""
    approve(root)
    run_launch(root)
    started = launch.start(root, by="ada")
    history = registry_of(root).history()
    assert launch.running_test(root) == started
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("planned_users: 10000", "planned_users: 200"))
    run_launch(root)
    assert read_json(root / "launch/plan.json")["rule"]["planned_users"] == 200
    assert launch.start(root, by="ada") == started
    assert "test g0001 goes on by the plan of its start" in caplog.text
    assert registry_of(root).history() == history


@pytest.mark.parametrize("ended", [False, True])
def test_a_generation_gets_one_test(root: Path, ended: bool) -> None:
    approve(root)
    run_launch(root)
    launch.start(root, by="ada")
    if ended:
        promotion.rollback(root, "g0001", "complaints", by="ada")
        refusal = r"g0001 has been tested already \(rolled_back\); open the next generation"
    else:
        write_model(root, "made again")
        write_verdict(root)
        approve(root)
        run_launch(root)
        refusal = "the test of g0001 runs already, of model .* flywheel ab stop --generation g0001 --by"
    before = registry_of(root).history()
    with pytest.raises(launch.LaunchError, match=refusal):
        launch.running_test(root)
    with pytest.raises(launch.LaunchError, match=refusal):
        launch.start(root, by="ada")
    assert registry_of(root).history() == before


def test_simulated_users_talk_to_the_models_of_the_plan(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(root)
    run_launch(root)
    launch.start(root, by="ada")
    found = []

    def simulate(*_: object, control: Path, candidate: Path) -> None:
        found.extend(tree_digest(folder) for folder in (control, candidate))

    monkeypatch.setattr(simulated, "simulate", simulate)
    simulated.simulate_ab(root)
    assert found == [arm.digest for arm in registry_of(root).state().running().plan.arms]
    kept = root / "inputs" / f"served-{found[1].removeprefix('sha256:')[:16]}"
    shutil.copytree(root / "models/policy", kept)
    write_model(root, "what the next generation made")
    simulated.simulate_ab(root)
    assert found[2:] == found[:2]

    def lost(*_: object) -> None:
        raise runner.LostDataError("its output is above")

    monkeypatch.setattr(runner, "bring", lost)
    for folder, model in ((kept, "g0001"), (root / "inputs/champion", "base")):
        shutil.rmtree(folder)
        with pytest.raises(ModelFilesError, match=f"model {model}: DVC has lost it"):
            simulated.simulate_ab(root)
    assert len(found) == 4


def test_simulated_users_talk_to_the_control_that_the_test_keeps(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two promotions elsewhere later it is neither champion nor the one before."""
    approve(root)
    run_launch(root)
    running = launch.start(root, by="ada")
    other = running.control.model_copy(update={"generation": "g0009", "digest": people.DIGEST})
    state = registry_of(root).state().with_(champion=other, previous=other)
    monkeypatch.setattr(Registry, "state", lambda self: state)
    found = []
    monkeypatch.setattr(simulated, "simulate", lambda *_, control, candidate: found.append(control))
    simulated.simulate_ab(root)
    assert [tree_digest(folder) for folder in found] == [running.plan.arms[0].digest]


def test_a_full_layer_is_a_refusal_that_says_so(root: Path) -> None:
    registry, shown = registry_of(root), {"generation": "g0009", "verdict_digest": people.DIGEST}
    base = registry.state().champion
    other = base.model_copy(update={"generation": "g0009", "digest": people.DIGEST})
    registry.record_approval("launch", model_digest=other.digest, decision="approve", by="ada", **shown)
    plan = people.make_plan("g0009", share=0.1)
    control = plan.arms[0].model_copy(update={"digest": base.digest})
    plan = plan.model_copy(update={"arms": (control, plan.arms[1]), "model_digest": other.digest})
    registry.start_experiment(plan, other, by="ada", duration=timedelta(days=7))
    approve(root)
    run_launch(root)
    with pytest.raises(launch.LaunchError, match=r"plan\.json: the arms .* has 0\.8 left beside g0009; wait"):
        launch.start(root, by="ada")
    assert len(registry.state().all_running()) == 1


def test_another_model_draws_other_users(root: Path) -> None:
    approve(root)
    run_launch(root)
    salt = read_json(root / "launch/plan.json")["salt"]
    write_model(root, "another")
    write_verdict(root)
    approve(root)
    run_launch(root)
    assert read_json(root / "launch/plan.json")["salt"] != salt


def test_without_a_plan_the_error_says_what_writes_one(root: Path) -> None:
    for begin in (lambda: launch.start(root, by="ada"), lambda: simulated.simulate_ab(root)):
        with pytest.raises(
            launch.LaunchError, match=r"launch/plan\.json: there is no plan .* flywheel generation run"
        ):
            begin()


def test_without_an_approval_the_error_says_how(root: Path) -> None:
    with pytest.raises(RegistryError, match="flywheel approve launch"):
        run_launch(root)
    assert not (root / "launch/plan.json").exists()


@pytest.mark.parametrize("decision", ["reject", "timeout"])
def test_a_no_launches_nothing(root: Path, decision: str) -> None:
    approve(root)
    approve(root, decision=decision)
    with pytest.raises(RegistryError, match=f"was not approved: {decision} by ada"):
        run_launch(root)


def test_a_blocked_model_is_refused_even_if_approved(root: Path) -> None:
    approve(root)
    write_verdict(root, "block")
    with pytest.raises(GateBlockedError, match=r"win rate above 0\.65"):
        run_launch(root)
    with pytest.raises(GateBlockedError):
        launch_request(root)


def test_a_warning_may_be_launched(root: Path) -> None:
    write_verdict(root, "warn")
    assert launch_request(root).generation == "g0001"


@pytest.mark.parametrize("verdict", ["", "PASS", "block"])
def test_only_pass_passes(root: Path, verdict: str) -> None:
    write_verdict(root, verdict)
    with pytest.raises(GateBlockedError):
        launch_request(root)


def test_a_verdict_without_its_fields_is_refused(root: Path) -> None:
    write_json({"verdict": "pass"}, root / "gate/verdict.json")
    with pytest.raises(ApprovalError, match="not a verdict"):
        launch_request(root)


@pytest.mark.parametrize("missing", ["gate/verdict.json", "models/policy"])
def test_what_is_not_made_yet_is_not_asked_about(root: Path, missing: str) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(ApprovalError, match=f"{root / missing}: not made yet: `flywheel generation run`"):
        launch_request(root)


def test_an_approval_holds_for_that_model_and_verdict_only(root: Path) -> None:
    approve(root)
    write_model(root, "another")
    with pytest.raises(ApprovalError, match="is about model"):
        run_launch(root)
    write_verdict(root)
    with pytest.raises(RegistryError, match="was approved for model"):
        run_launch(root)


def test_start_checks_again(root: Path) -> None:
    approve(root)
    run_launch(root)
    approve(root, decision="reject")
    with pytest.raises(RegistryError, match="not approved: reject"):
        launch.start(root, by="ada")
    write_model(root, "another")
    write_verdict(root)
    with pytest.raises(launch.LaunchError, match=r"run stage launch again \(flywheel generation run\)"):
        launch.start(root, by="ada")
    assert registry_of(root).state().candidate is None


def test_an_approval_of_what_has_changed_is_refused(root: Path) -> None:
    shown = launch_request(root)
    assert shown.model_digest in shown.body
    assert shown.evidence_digest in shown.body
    write_model(root, "another")
    write_verdict(root)
    with pytest.raises(ApprovalError, match="Nothing is approved"):
        record_answer(root, shown, decision="approve", by="ada")
    assert registry_of(root).state().approvals == ()
    record_answer(root, shown, decision="reject", by="ada")  # a no needs nothing to be there
    assert registry_of(root).state().approvals[-1].shown == (shown.model_digest, shown.evidence_digest)


def test_the_text_of_another_verdict_is_not_approved(root: Path) -> None:
    """The figures that a person reads and the digests that they answer for must be of one verdict."""
    text = (root / "gate/approval.md").read_text()
    write_verdict(root, "warn")
    (root / "gate/approval.md").write_text(text)
    with pytest.raises(ApprovalError, match=r"approval\.md is not of this verdict: run stage gate again"):
        launch_request(root)
    with pytest.raises(ApprovalError, match="not of this verdict"):
        approve(root)
    assert registry_of(root).state().approvals == ()


def test_a_candidate_equal_to_the_champion_is_not_tested(root: Path) -> None:
    write_model(root, "champion")
    write_verdict(root)
    approve(root)
    with pytest.raises(launch.LaunchError, match="the candidate is the champion itself"):
        run_launch(root)


def test_a_model_that_dvc_does_not_know_is_not_launched(root: Path) -> None:
    approve(root)
    run_launch(root)
    (root / "dvc.lock").write_text("stages: {}\n")
    with pytest.raises(launch.LaunchError, match=r"not in dvc\.lock"):
        launch.start(root, by="ada")


def test_the_next_report_knows_the_style_of_a_launched_generation(root: Path) -> None:
    approve(root)
    figures = {"before": 20.5, "after": 22.0, "effect": 0.1}
    style = {"comparisons": {"generation": {"features": {"words": figures}}}}
    write_json(style, root / "metrics/style.json")
    run_launch(root)
    launch.start(root, by="ada")
    expected = [{"generation": "g0001", "features": {"words": [20.5, 22.0]}}]
    assert launched_styles(registry_of(root), "g0002") == expected
    assert launched_styles(registry_of(root), "g0001") == []


def test_a_launched_generation_keeps_the_profile_of_its_data(root: Path) -> None:
    approve(root)
    profile = read_json(root / "data/validated/profile.json")
    assert accepted_profile(registry_of(root), "g0002") == {"generation": None, "profile": None}
    run_launch(root)
    launch.start(root, by="ada")
    assert accepted_profile(registry_of(root), "g0002") == {"generation": "g0001", "profile": profile}
    assert accepted_profile(registry_of(root), "g0001") == {"generation": None, "profile": None}
    record = {"generation": "g0001", "salt": "s", "shares": {}, "evaluated": [{"prompt_id": "p1"}]}
    assert launched_splits(registry_of(root), "g0002") == {"earlier": [record]}
    assert launched_splits(registry_of(root), "g0001") == {"earlier": []}
    launch.start(root, by="retry")
