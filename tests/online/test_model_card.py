"""The card of a generation: where the hub expects it, made from the registry, and never inside a bound folder."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from flywheel_tasks.online import promotion
from flywheel_tasks.online.approval import VERDICT, registry_of
from flywheel_tasks.online.model_card import CardError, make_card, publish
from flywheel_tasks.pipeline.model_files import ModelFilesError
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from tests.online.conftest import MD5, approve, write_model, write_verdict
from tests.online.test_analysis import launch_and_analyse


@pytest.fixture
def promoted(root: Path) -> Path:
    write_json({"win_rate": 0.55}, root / "metrics/evaluate.json")
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    promotion.promote(root, "g0001", by="ada")
    return root


def test_a_promotion_leaves_a_card_and_the_model_as_it_was(promoted: Path) -> None:
    (kept,) = (promoted / "registry/generations/g0001").glob("README-*.md")
    card = ModelCard.load(kept)
    assert card.data.model_name == "characterflywheel-g0001"
    assert card.data.pipeline_tag == "text-generation"
    lifts = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(lifts) == {"breadth_lift_percent", "depth_lift_percent"}
    assert lifts["depth_lift_percent"] > 0
    champion = registry_of(promoted).state().champion
    for told in (
        champion.digest,
        MD5,
        champion.data_version,
        "Gate: pass",
        "| evaluate.win_rate | pass | win rate within |",
        '"win_rate": 0.55',
    ):
        assert told in card.text
    assert "**Simulated.**" in card.text
    assert tree_digest(promoted / "models/policy") == champion.digest
    promotion.promote(promoted, "g0001", by="retry")
    assert len(list((promoted / "registry/generations/g0001").glob("README-*.md"))) == 1


def test_a_published_copy_has_the_card_beside_the_weights(promoted: Path, tmp_path: Path) -> None:
    readme = publish(promoted, "g0001", tmp_path / "hub/g0001")
    assert readme == tmp_path / "hub/g0001/README.md"
    assert (readme.parent / "model.safetensors").read_text() == "candidate"
    assert ModelCard.load(readme).data.library_name == "transformers"
    with pytest.raises(CardError, match="exists already"):
        publish(promoted, "g0001", tmp_path / "hub/g0001")


def test_another_model_is_not_published_under_its_name(promoted: Path, tmp_path: Path) -> None:
    write_model(promoted, "another")
    with pytest.raises(ModelFilesError, match="DVC does not bring it"):
        publish(promoted, "g0001", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_dropped_generation_still_has_a_card(root: Path) -> None:
    launch_and_analyse(root, 200)
    promotion.rollback(root, "g0001", "users complained", by="ada")
    card = make_card(registry_of(root), "g0001")
    assert "rolled back: users complained" in card
    assert "the champion when" not in card
    with pytest.raises(CardError, match="knows no model of generation g0009"):
        make_card(registry_of(root), "g0009")


def test_a_generation_that_the_gate_blocked_has_a_card(root: Path) -> None:
    write_json({"win_rate": 0.71}, root / "metrics/evaluate.json")
    write_json({"arms": 2}, root / "metrics/launch.json")  # of the generation before
    write_verdict(root, "block")
    for _ in range(2):
        promotion.decline_blocked(root, by="policy")
    (declined,) = [change for change in registry_of(root).history() if change.kind == "declined"]
    assert (declined.by, declined.detail["reason"]) == ("policy", "the gate blocks: win rate above 0.65")
    (kept,) = (root / "registry/generations/g0001").glob("README-*.md")
    card = ModelCard.load(kept)
    assert card.data.model_name == "characterflywheel-g0001"
    assert "| evaluate.win_rate | block | win rate above 0.65 |" in card.text
    assert "Not launched: the gate blocks: win rate above 0.65." in card.text
    assert "arms" not in card.text
    assert tree_digest(root / "models/policy") in card.text
    assert make_card(registry_of(root), "g0001") == card.content


def test_a_blocked_generation_made_again_and_launched_has_the_card_of_what_was_launched(root: Path) -> None:
    write_json({"win_rate": 0.71}, root / "metrics/evaluate.json")
    write_verdict(root, "block")
    promotion.decline_blocked(root, by="policy")
    write_json({"win_rate": 0.55}, root / "metrics/evaluate.json")
    write_model(root, "made again")
    write_verdict(root)
    launch_and_analyse(root, 200)
    card = make_card(registry_of(root), "g0001")
    assert "## Gate: pass" in card
    assert '"win_rate": 0.55' in card
    assert tree_digest(root / "models/policy") in card
    for old in ("Not launched", "0.71", "Gate: block"):
        assert old not in card


def test_an_account_of_an_earlier_version_counts_for_its_own_model_only(promoted: Path) -> None:
    (kept,) = (promoted / "registry/generations/g0001").glob("evidence-*.json")
    kept.rename(old := kept.with_name("evidence.json"))
    assert "## Gate: pass" in make_card(registry_of(promoted), "g0001")
    found = read_json(old)
    write_json({**found, "model": {**found["model"], "digest": "sha256:" + "0" * 64}}, old)
    assert "No verdict" in make_card(registry_of(promoted), "g0001")


def test_a_later_no_without_a_verdict_leaves_the_card(root: Path) -> None:
    write_verdict(root, "block")
    promotion.decline_blocked(root, by="policy")
    (root / VERDICT).unlink()
    promotion.decline(root, "g0001", "nobody answered.", by="ada")
    card = make_card(registry_of(root), "g0001")
    kept = (root / "registry/generations/g0001").glob("README-*.md")
    assert card in [path.read_text() for path in kept]
    assert "Not launched: nobody answered.\n" in card
    assert "## Gate: block" in card


def test_a_launched_generation_whose_gate_blocks_later_stays_launched(root: Path) -> None:
    launch_and_analyse(root, 200)
    changes = registry_of(root).history()
    write_verdict(root, "block")
    promotion.decline_blocked(root, by="policy")
    assert registry_of(root).history() == changes


def test_a_verdict_on_another_model_tells_nothing_of_this_one(root: Path) -> None:
    write_verdict(root, "block")
    write_model(root, "another")
    promotion.decline_blocked(root, by="policy")
    assert registry_of(root).history()[-1].kind == "declined"
    assert not list((root / "registry/generations").glob("g0001/README-*.md"))


@pytest.mark.parametrize("launched", [True, False])
def test_a_card_that_a_kill_left_unkept_is_kept_by_the_repeat(
    root: Path, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    if launched:
        launch_and_analyse(root, 200)
    else:
        write_verdict(root, "block")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "keep_card", killed)
        with pytest.raises(KeyboardInterrupt):
            promotion.rollback(root, "g0001", "harm", by="ada")
    changes = registry_of(root).history()
    for _ in range(2):
        state = promotion.rollback(root, "g0001", "harm", by="retry")
        assert len(list((root / "registry/generations/g0001").glob("README-*.md"))) == 1
        assert registry_of(root).history() == changes
        assert state == registry_of(root).state()


def test_another_reason_to_decline_is_recorded_too(root: Path) -> None:
    for reason in ("no answer", "no by ada", "no by ada"):
        promotion.rollback(root, "g0001", reason, by="airflow")
    told = [change.detail["reason"] for change in registry_of(root).history() if change.kind == "declined"]
    assert told == ["no answer", "no by ada"]


def test_a_model_that_never_was_leaves_no_card(root: Path) -> None:
    promotion.rollback(root, "g0002", "nobody answered", by="ada")
    assert not list((root / "registry/generations").glob("g0002/README-*.md"))
