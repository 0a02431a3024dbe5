"""Both reward-model stages on a tiny random Llama with a planted preference."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from flywheel_tasks.chat.prompt import reply_ids
from flywheel_tasks.pipeline import earlier_pairs
from flywheel_tasks.rewards import encoding, pairwise, pointwise, recipe
from flywheel_tasks.rewards.backbone import load_backbone
from flywheel_tasks.rewards.earlier import PIN
from flywheel_tasks.rewards.encoding import Limits, encode_comparisons, encode_replies, reward_tokenizer
from flywheel_tasks.rewards.pairs import PairError, load_pairs
from flywheel_tasks.rewards.pairwise import choose_pairs
from flywheel_tasks.rewards.recipe import rows_of
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.rewards.trainer import _ordered
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.training import run as training_run
from flywheel_tasks.training.run import TrainingError
from tests.rewards.conftest import planted_rows, save_untrained

pytestmark = pytest.mark.slow

COMPUTE = Compute(precision="float32", threads=1)
STAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pointwise_rm": (pointwise, {"epochs": 5.0, "learning_rate": 0.005}),
    "pairwise_rm": (pairwise, {"epochs": 6.0, "learning_rate": 0.003, "max_pairs": 500}),
}


@dataclass
class Run:
    """A finished stage."""

    io: Any
    metrics: Mapping[str, Any]
    model: Path
    curve: Path


_runs: dict[str, Run] = {}


def stage_run(section: str, make: Callable[..., Any], root: Path) -> Run:
    module, changes = STAGES[section]
    settings = {f"{section}.{key}": value for key, value in changes.items()} | {
        "compute.precision": "float32"
    }
    rows = planted_rows(48, "reward_train") + planted_rows(24, "reward_heldout")
    io = make(f"train_{section}", settings, rows, root)
    metrics = module.run(io)
    return Run(io, metrics, io.out(f"models/{section}"), io.out(f"plots/{section}.csv"))


@pytest.fixture
def trained(reward_io: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A stage's run, made once for all tests of this file."""

    def get(section: str) -> Run:
        if section not in _runs:
            _runs[section] = stage_run(section, reward_io, tmp_path_factory.mktemp(section) / "work")
        return _runs[section]

    return get


@pytest.mark.parametrize("section", STAGES)
def test_the_planted_preference_is_learned(section: str, trained: Callable[[str], Run]) -> None:
    metrics = trained(section).metrics
    accuracy = metrics["heldout"]["accuracy"]
    assert accuracy["low"] > 0.6
    assert accuracy["n"] == metrics["heldout"]["pairs"] == 48
    assert {kind: found["n"] for kind, found in metrics["heldout"]["by_kind"].items()} == {
        "ranking": 24,
        "rewrite": 24,
    }
    assert metrics["heldout"]["margin"]["low"] > 0
    assert metrics["train"]["loss_last"] < metrics["train"]["loss_first"]
    assert metrics["head_moved"] > 0.01


@pytest.mark.parametrize("section", STAGES)
def test_the_curve_has_a_row_a_step(section: str, trained: Callable[[str], Run]) -> None:
    run = trained(section)
    rows = list(csv.DictReader(run.curve.open()))
    assert [int(row["step"]) for row in rows] == list(range(1, run.metrics["train"]["steps"] + 1))


@pytest.mark.parametrize("section", STAGES)
def test_in_bfloat16_the_trained_model_is_what_is_saved(
    section: str, reward_io: Callable[..., Any], tmp_path: Path
) -> None:
    """Hardware that has bfloat16 trains in it; the stage fails if the saved model answers otherwise."""
    rows = planted_rows(16, "reward_train") + planted_rows(8, "reward_heldout")
    io = reward_io(f"train_{section}", {"compute.precision": "bfloat16"}, rows, tmp_path / "bfloat16")
    module, _ = STAGES[section]
    assert module.run(io)["head_moved"]
    assert {
        value.dtype for value in load_file(io.out(f"models/{section}") / "model.safetensors").values()
    } == {torch.float32}


def test_training_in_bfloat16_takes_fast_steps_with_the_longest_row(
    reward_io: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    @contextmanager
    def spy(model: torch.nn.Module, **said: Any) -> Iterator[None]:
        seen.append(said)
        yield

    monkeypatch.setattr(training_run, "fast_steps", spy)
    rows = planted_rows(8, "reward_train") + planted_rows(8, "reward_heldout")
    pointwise.run(reward_io("train_pointwise_rm", {"compute.precision": "bfloat16"}, rows, tmp_path / "work"))
    (said,) = seen
    assert said["bfloat16"]
    assert 20 < said["longest"] < 200


@pytest.mark.parametrize("section", STAGES)
def test_training_goes_on_from_the_earlier_generations_model(
    section: str, trained: Callable[[str], Run], reward_io: Callable[..., Any], tmp_path: Path
) -> None:
    """One hardly moving step: the model is the earlier one, head and all, and no new one."""
    first, root = trained(section), tmp_path / "next"
    split = {"salt": first.io.settings.split.salt, "shares": dict(first.io.settings.split.shares)}
    kind, place = section.removesuffix("_rm"), f"inputs/earlier_{section}"
    shutil.copytree(first.model, root / place)
    pinned = {"path": place, "digest": tree_digest(root / place)}
    write_json({"generation": "g0001", "models": {kind: pinned}, "split": split, "reason": None}, root / PIN)
    earlier_pairs.write_none(root)
    little = STAGES[section][1] | {"epochs": 0.05, "learning_rate": 1e-7, "start": "earlier"}
    settings = {f"{section}.{key}": value for key, value in little.items()}
    rows = planted_rows(48, "reward_train") + planted_rows(24, "reward_heldout")
    io = reward_io(f"train_{section}", settings | {"compute.precision": "float32"}, rows, root)
    metrics = STAGES[section][0].run(io)
    assert metrics["start"] == {"generation": "g0001", "reason": None}
    assert metrics["heldout"]["accuracy"] == first.metrics["heldout"]["accuracy"]
    assert metrics["head_moved"] < 1e-3
    assert first.metrics["start"]["generation"] is None
    assert first.metrics["head_moved"] > 1e-2


@pytest.mark.parametrize("section", STAGES)
def test_without_lora_the_whole_backbone_is_trained(
    section: str, reward_io: Callable[..., Any], tmp_path: Path
) -> None:
    rows = planted_rows(16, "reward_train") + planted_rows(8, "reward_heldout")
    changes = {f"{section}.lora": None, f"{section}.learning_rate": 1e-3}
    io = reward_io(f"train_{section}", changes, rows, tmp_path / "full")
    module, _ = STAGES[section]
    metrics = module.run(io)
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (io.dep("models/base"), io.out(f"models/{section}"))
    )
    same = [name for name in before.keys() & after.keys() if before[name].equal(after[name])]
    assert len(before.keys() & after.keys()) > 5
    assert same == []
    assert metrics["train"]["trainable_parameters"] == sum(value.numel() for value in after.values())


def test_both_generations_models_are_measured_in_the_precision_that_they_are_used_in(
    reward_io: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the earlier model is the very same, neither gains by rounding."""
    found: list[list[list[float]]] = []

    def same(io: Any, kind: str, pairs: Any, margins: list[float], margins_of: Any) -> dict[str, Any]:
        found.append([margins, margins_of(io.out(f"models/{kind}_rm"), pairs)])
        return {}

    monkeypatch.setattr(recipe, "against_earlier", same)
    rows = planted_rows(8, "reward_train") + planted_rows(8, "reward_heldout")
    for precision in ("bfloat16", "float32"):
        pointwise.run(
            reward_io("train_pointwise_rm", {"compute.precision": precision}, rows, tmp_path / precision)
        )
    for this, earlier in found:
        assert this == earlier
    assert found[0] != found[1]


def test_a_model_that_cannot_know_is_at_chance(reward_io: Callable[..., Any], tmp_path: Path) -> None:
    """Trained on pairs whose order is random, the measured accuracy must include one half."""
    rows = planted_rows(24, "reward_train") + planted_rows(24, "reward_heldout")
    for row in rows[::2]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    metrics = pointwise.run(reward_io("train_pointwise_rm", {"pointwise_rm.learning_rate": 0.01}, rows))
    accuracy = metrics["heldout"]["accuracy"]
    assert accuracy["low"] < 0.5 < accuracy["high"]


@pytest.mark.parametrize("section", STAGES)
def test_the_first_loss_is_that_of_plain_torch(section: str, trained: Callable[[str], Run]) -> None:
    """-log sigmoid(s_chosen - s_rejected), each side alone through an unwrapped classifier: a reply in the pointwise
    model; in the pairwise one a reply judged beside the other, and the other beside it."""
    run = trained(section)
    settings = getattr(run.io.settings, section)
    tokenizer = reward_tokenizer(run.io.dep("models/base"))
    set_seed(run.io.settings.seed)
    model = load_backbone(run.io.dep("models/base"), tokenizer.pad_token_id).eval()
    pairs = load_pairs(run.io.dep("data/preferences/pairs.parquet"))["reward_train"]
    limits = Limits(section.removesuffix("_rm"), settings.max_tokens, 96)
    if section == "pairwise_rm":
        pairs = choose_pairs(pairs, settings.max_pairs, run.io.settings.seed)
    rows, _ = rows_of(STAGES[section][0].encode_pair, tokenizer, pairs, limits)
    batch = _ordered(rows, settings.batch_size, settings.epochs, run.io.settings.seed)[: settings.batch_size]

    def score(prompt: tuple[int, ...], side: tuple[int, ...]) -> torch.Tensor:
        return model(input_ids=torch.tensor([[*prompt, *side]])).logits[0, 0]

    with torch.no_grad():
        margins = torch.stack([score(row.prompt, row.better) - score(row.prompt, row.worse) for row in batch])
        expected = -torch.log(1 / (1 + torch.exp(-margins))).mean()
    logged = next(csv.DictReader(run.curve.open()))
    assert float(logged["loss"]) == pytest.approx(float(expected), abs=1e-4)
    assert float(logged["margin"]) == pytest.approx(float(margins.mean()), abs=1e-4)


def heldout(run: Run) -> list[Any]:
    return load_pairs(run.io.dep("data/preferences/pairs.parquet"))["reward_heldout"]


def test_scores_are_those_of_a_plain_loop_in_the_callers_order(trained: Callable[[str], Run]) -> None:
    run = trained("pointwise_rm")
    scorer = PointwiseScorer(run.model, compute=COMPUTE)
    rows = [(p.card, p.history, reply) for p in heldout(run) for reply in (p.chosen, p.rejected)]
    rows = rows[::3] + rows[1::3]
    expected = []
    for card, history, reply in rows:
        prompt, (ids,) = encode_replies(scorer._tokenizer, card, history, [reply], scorer._limits)
        with torch.no_grad():
            row = torch.tensor([prompt + ids], device=scorer._model.device)
            expected.append(float(scorer._model(input_ids=row).logits[0, 0]))
    assert scorer.score(rows) == pytest.approx(expected, abs=1e-4)
    assert scorer.score([]) == []


def test_preferences_are_those_of_a_plain_loop(trained: Callable[[str], Run]) -> None:
    run = trained("pairwise_rm")
    scorer = PairwiseScorer(run.model, compute=COMPUTE)
    rows = [(p.card, p.history, p.chosen, p.rejected) for p in heldout(run)[:12]]
    expected = []
    for card, history, first, second in rows:
        prompt, sides = encode_comparisons(
            scorer._tokenizer, card, history, [(second, first), (first, second)], scorer._limits
        )
        with torch.no_grad():
            inputs = (torch.tensor([prompt + ids], device=scorer._model.device) for ids in sides)
            a, b = (scorer._model(input_ids=row).logits[0, 0] for row in inputs)
        expected.append(float(torch.sigmoid(a - b)))
    assert scorer.prefer(rows) == pytest.approx(expected, abs=1e-4)
    swapped = scorer.prefer([(card, history, second, first) for card, history, first, second in rows])
    assert swapped == pytest.approx([1 - p for p in expected], abs=1e-6)
    card, history, first, _ = rows[0]
    assert scorer.prefer([(card, history, first, first)]) == [0.5]


FRESH = """
import json, sys
from pathlib import Path
from flywheel_tasks.chat.card import Card
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.settings import Compute
compute = Compute(precision="float32", threads=1)
rows = [
    (Card(id_, name, tuple(traits), tuple(instructions)), history, chosen, rejected)
    for (id_, name, traits, instructions), history, chosen, rejected in json.load(sys.stdin)
]
def margins(folder):
    scorer = PointwiseScorer(Path(folder), compute=compute)
    chosen = scorer.score([(card, history, chosen) for card, history, chosen, _ in rows])
    rejected = scorer.score([(card, history, rejected) for card, history, _, rejected in rows])
    return [c - r for c, r in zip(chosen, rejected)]
preferred = PairwiseScorer(Path(sys.argv[2]), compute=compute).margins(rows)
json.dump([margins(sys.argv[1]), preferred, margins(sys.argv[3])], sys.stdout)
"""


def test_a_fresh_process_gives_what_was_measured(
    trained: Callable[[str], Run], tiny_models: Path, tmp_path: Path
) -> None:
    """The heads are in the saved models: a process that saw no training agrees as often with the labels.

    That of a type which transformers has no classifier for, too.
    """
    runs = [trained("pointwise_rm"), trained("pairwise_rm")]
    other = save_untrained("granite", tiny_models / "base", tmp_path)
    scored = pointwise.pointwise_margins(PointwiseScorer(other, compute=COMPUTE), heldout(runs[0]))
    cards = [
        ((p.card.card_id, p.card.name, p.card.traits, p.card.instructions), p.history, p.chosen, p.rejected)
        for p in heldout(runs[0])
    ]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *(str(run.model) for run in runs), str(other)],
        input=json.dumps(cards),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    *of_runs, of_other = json.loads(done.stdout)
    assert of_other == pytest.approx(scored, abs=1e-5)
    assert min(map(abs, scored)) > 1e-4
    for run, margins in zip(runs, of_runs, strict=True):
        measured = run.metrics["heldout"]
        assert sum(m > 0 for m in margins) / len(margins) == pytest.approx(measured["accuracy"]["value"])
        assert sum(margins) / len(margins) == pytest.approx(measured["margin"]["value"], abs=1e-4)


def test_the_folder_is_a_plain_classifier_in_float32(trained: Callable[[str], Run]) -> None:
    folder = trained("pointwise_rm").model
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert "score.weight" in weights
    assert not [name for name in weights if "lora" in name or "lm_head" in name]
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert json.loads((folder / "scorer.json").read_text()) == {
        "kind": "pointwise",
        "max_tokens": 224,
        "prompt_max_tokens": 96,
    }


def test_the_same_inputs_give_the_same_model(
    trained: Callable[[str], Run], reward_io: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = trained("pointwise_rm"), stage_run("pointwise_rm", reward_io, tmp_path / "again")
    assert second.metrics == first.metrics
    assert tree_digest(second.model) == tree_digest(first.model)
    assert tree_digest(second.curve) == tree_digest(first.curve)


@pytest.mark.parametrize("section", STAGES)
def test_a_reply_that_has_lost_its_end_stops_the_run(
    section: str, reward_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "reply_ids", lambda tokenizer, reply: reply_ids(tokenizer, reply)[:-1])
    rows = planted_rows(2, "reward_train") + planted_rows(2, "reward_heldout")
    with pytest.raises(TrainingError, match=r"pair reward_train-\d-\d, chosen: .* none may be cut"):
        STAGES[section][0].run(reward_io(f"train_{section}", {}, rows))


def test_equal_replies_only_is_an_error(reward_io: Callable[..., Any]) -> None:
    rows = planted_rows(2, "reward_train") + planted_rows(2, "reward_heldout")
    for row in rows:
        row["rejected"] = row["chosen"]
    with pytest.raises(PairError, match="every reward_train pair is equal"):
        pointwise.run(reward_io("train_pointwise_rm", {}, rows))
