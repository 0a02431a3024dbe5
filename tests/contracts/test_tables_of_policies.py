"""The contracts of what curation reports and of what rejection sampling, RL and evaluation write: broken row by row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from flywheel_tasks.contracts.enforce import enforce
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.settings import TRAINABLE_SIGNALS, SignalModels
from flywheel_tasks.storage.tables import write_rows
from tests.curation.rows import prompt

FOLDER = Path(__file__).parents[2] / "data_contracts"
CONTRACTS = load_contracts(FOLDER)
NAN, INFINITE = float("nan"), float("inf")
Row = dict[str, Any]
Tables = dict[str, list[Row]]

CARD = {"card_id": "card-1", "name": "Mae", "traits": ["dry"], "instructions": ["Be brief."]}
CONTEXT = {**{key: CARD[key] for key in ("card_id", "traits", "instructions")}, "card_name": "Mae"}
HISTORY = [{"role": "user", "content": "hello"}]
CURATED, CARDS, REMOVED = (f"data/curated/{name}.parquet" for name in ("prompts", "cards", "removed"))
TRAIN, HELDOUT, EVALUATION = (
    f"data/split/{name}.parquet" for name in ("policy_train", "policy_heldout", "evaluation")
)
CANDIDATES, ACCEPTED = (f"data/rejection/{name}.parquet" for name in ("candidates", "accepted"))
SELECTION, AFTER, CHECKS = (f"data/rl/{name}.parquet" for name in ("selection", "heldout", "checks"))
REPLIES = "data/evaluation/replies.parquet"
DUPLICATES, CLUSTERS, SAMPLE = (
    f"data/curated/{name}.parquet" for name in ("duplicates", "clusters", "sample")
)


def asked(number: int) -> Row:
    return {**prompt(f"p{number}"), "card_id": "card-1", "turn": 1, "source": "user"}


def candidate(number: int, at: int, reward: float, reason: str) -> Row:
    chances = {f"p_{signal}": 0.5 if signal == "continue" else None for signal in TRAINABLE_SIGNALS}
    identity = {"prompt_id": f"p{number}", "source": "user", "candidate_id": f"p{number}:champion:{at}"}
    told = {"policy": "champion@1", "text": f"reply {at}", "reward": reward, "reason": reason}
    return identity | told | chances | {"kept": reason == "best_of_n"}


def rejection() -> tuple[Tables, Tables]:
    """Two prompts with two candidates each; of the first, one is kept."""
    rows = [candidate(1, 0, 0.2, "not_best"), candidate(1, 1, 0.9, "best_of_n")]
    rows += [candidate(2, 0, 0.1, "below_reward_threshold"), candidate(2, 1, 0.0, "not_best")]
    told = {key: rows[1][key] for key in ("prompt_id", "candidate_id", "source", "reward")}
    accepted = told | CONTEXT | {"history": HISTORY, "reply": "reply 1"}
    read = {CURATED: [asked(n) for n in range(9)], CARDS: [CARD], TRAIN: [asked(1), asked(2)]}
    return {CANDIDATES: rows, ACCEPTED: [accepted]}, read


def check_row(step: int, number: int, reward: float, **changes: Any) -> Row:
    champion = {"champion_reply": "hm", "champion_reward": 0.5, "win": float(reward > 0.5)}
    own = {"step": step, "prompt_id": f"p{number}", "sample": 0, "reply": "yes", "tokens": 2, "ended": True}
    return own | {"reward": reward, "judge": 0.6 if number == 1 else None} | champion | changes


def learned() -> tuple[Tables, Tables]:
    """RL on prompt 1 of 1 and 2, checked on 3 and 4."""
    selection = [
        {"prompt_id": "p1", "mean_reward": 0.1, "reward_std": 0.2, "selected": True, "reason": "low_mean"},
        {
            "prompt_id": "p2",
            "mean_reward": 0.9,
            "reward_std": 0.0,
            "selected": False,
            "reason": "not_selected",
        },
    ]
    checks = [check_row(step, n, reward) for step, reward in ((0, 0.4), (3, 0.7)) for n in (3, 4)]
    sides = {"before_reply": "yes", "before_reward": 0.4, "after_reply": "yes", "after_reward": 0.7}
    heldout = [{"prompt_id": f"p{n}", "sample": 0, "source": "user", **sides} for n in (3, 4)]
    read = {CURATED: [asked(n) for n in range(9)], TRAIN: [asked(1), asked(2)], HELDOUT: [asked(3), asked(4)]}
    return {SELECTION: selection, CHECKS: checks, AFTER: heldout}, read


def evaluated() -> tuple[Tables, Tables]:
    """Two samples of two prompts."""
    judged = {"champion_reply": "", "candidate_reply": "yes", "champion_reward": 0.1, "candidate_reward": 0.2}
    rows = [
        {key: asked(n)[key] for key in ("prompt_id", "source", "user_id")}
        | {"sample": sample, "history": HISTORY, "pairwise_p": 0.5, **CONTEXT, **judged}
        for n in (5, 6)
        for sample in (0, 1)
    ]
    return {REPLIES: rows}, {CARDS: [CARD], EVALUATION: [asked(5), asked(6)], TRAIN: [asked(1)]}


def curated() -> tuple[Tables, Tables]:
    """What curation tells of one duplicate."""
    duplicate = {"kind": "near", "dropped_id": "p9", "kept_id": "p1", "cosine": 0.97, "cluster": 0}
    duplicate |= {"across_clusters": False, "dropped_text": "hi", "kept_text": "hi!"}
    removed = {
        "prompt_id": "p9",
        "conversation_id": "c",
        "user_id": "u",
        "reason": "near_duplicate",
        "detail": "-",
    }
    return {
        DUPLICATES: [duplicate],
        CLUSTERS: [{"cluster": 0, "prompts": 4, "pruned": 1, "pruned_share": 0.25}],
        SAMPLE: [
            {"dimension": "source", "value": "user", "raw": 9, "available": 8, "target": 4, "achieved": 4}
        ],
        REMOVED: [removed],
    }, {}


def held(folder: Path, made: tuple[Tables, Tables]) -> list[str]:
    """Write the tables of a stage and what it read, and hold the former to their contracts."""
    places = []
    for tables in made:
        for place, rows in tables.items():
            contract = next(of for of in CONTRACTS.values() if place in of.paths)
            write_rows(rows, arrow_schema(contract), folder / place)
        places.append({place: folder / place for place in tables})
    return enforce(*places, FOLDER, folder / "scratch", 100)


@pytest.fixture(autouse=True)
def contracts_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_tasks.contracts.enforce.load_contracts", lambda _: CONTRACTS)


def all_paths(made: tuple[Tables, Tables]) -> list[str]:
    return sorted(made[0])


@pytest.mark.parametrize("stage", [rejection, learned, evaluated, curated])
def test_sound_tables_pass(tmp_path: Path, stage: Callable[[], tuple[Tables, Tables]]) -> None:
    assert held(tmp_path, stage()) == all_paths(stage())


@pytest.mark.parametrize(
    ("stage", "place", "row", "changes", "message"),
    [
        (rejection, CANDIDATES, 0, {"reward": NAN}, r"row 1 \(candidate_id p1:champion:0\) .* not_scored"),
        (rejection, CANDIDATES, 0, {"reward": -INFINITE}, "row 1 .* reward_not_finite"),
        (rejection, CANDIDATES, 3, {"p_continue": 1.5}, "row 4 .* p_continue_no_probability"),
        (rejection, CANDIDATES, 3, {"reason": "unlucky"}, "row 4 .* known_reason"),
        (rejection, CANDIDATES, 0, {"candidate_id": "p1:champion:1"}, "row 1 .*, 2 .* repeated_candidate_id"),
        (rejection, CANDIDATES, 3, {"kept": True}, "row 4 .* kept_for_no_reason"),
        (rejection, CANDIDATES, 1, {"kept": False}, "row 2 .* dropped_though_best"),
        (rejection, CANDIDATES, 1, {"text": " "}, "row 2 .* blank_kept"),
        (rejection, CANDIDATES, 0, {"kept": True, "reason": "best_of_n"}, "row 1 .*, 2 .* several_kept"),
        (rejection, CANDIDATES, 0, {"reward": 2.0}, "row 2 .* kept_not_best"),
        (rejection, CANDIDATES, 2, {"prompt_id": "p3"}, "row 3 .* missing_prompt"),
        (rejection, CANDIDATES, 2, {"source": "internal"}, "row 3 .* missing_prompt"),
        (rejection, CANDIDATES, 3, None, "every_prompt_has_its_candidates: observed 1, allowed at most 0"),
        (rejection, ACCEPTED, 0, {"candidate_id": "p2:champion:0"}, "row 2 .* kept_not_accepted"),
        (rejection, ACCEPTED, 0, {"candidate_id": "p1:champion:0"}, "row 1 .* not_a_candidate"),
        (rejection, ACCEPTED, 0, {"reply": "reply 0"}, "row 1 .* not_a_candidate"),
        (rejection, ACCEPTED, 0, {"reward": 0.8}, "row 1 .* not_a_candidate"),
        (rejection, ACCEPTED, 0, {"card_name": "May"}, "row 1 .* missing_card"),
        (rejection, ACCEPTED, 0, {"reply": ""}, "row 1 .* blank_reply"),
        (learned, SELECTION, 0, {"mean_reward": NAN}, "row 1 .* null_mean_reward"),
        (learned, SELECTION, 1, {"reward_std": -0.1}, "row 2 .* reward_std_no_deviation"),
        (learned, SELECTION, 1, {"selected": True}, "row 2 .* selected_for_no_reason"),
        (learned, SELECTION, 1, {"reason": "high_std"}, "row 2 .* left_out_for_a_reason"),
        (learned, SELECTION, 0, {"selected": False, "reason": "not_selected"}, "has_selected: observed 0"),
        (learned, SELECTION, 0, {"prompt_id": "p3"}, "row 1 .* missing_prompt"),
        (learned, CHECKS, 0, {"prompt_id": "p1"}, "checks.*row 1 .* missing_prompt"),
        (learned, CHECKS, 2, {"win": 0.0}, "row 3 .* lost_with_more_reward"),
        (learned, CHECKS, 0, {"win": 1.0}, "row 1 .* won_with_less_reward"),
        (learned, CHECKS, 0, {"win": 0.7}, "row 1 .* win_no_outcome"),
        (learned, CHECKS, 0, {"judge": 1.01}, "row 1 .* judge_no_probability"),
        (learned, CHECKS, 0, {"champion_reply": "other"}, "row 1 .*, 3 .* champion_reply_varies"),
        (learned, CHECKS, 0, {"champion_reward": 0.6}, "row 1 .*, 3 .* champion_reward_varies"),
        (learned, CHECKS, 1, {"prompt_id": "p3"}, "row 1 .*, 2 .* repeated_step_prompt_and_sample"),
        (learned, CHECKS, 0, {"sample": -1}, "row 1 .* sample_below_zero"),
        (learned, CHECKS, 3, None, "every_step_has_every_prompt_and_sample: observed 1"),
        (learned, AFTER, 0, {"after_reward": INFINITE}, "row 1 .* after_reward_not_finite"),
        (learned, AFTER, 0, {"source": "internal"}, "heldout.*row 1 .* missing_prompt"),
        (learned, AFTER, 0, {"prompt_id": "p4"}, "row 1 .*, 2 .* repeated_prompt_and_sample"),
        (learned, AFTER, 0, {"sample": -1}, "row 1 .* sample_below_zero"),
        (evaluated, REPLIES, 0, {"pairwise_p": -0.1}, "row 1 .* pairwise_p_no_probability"),
        (evaluated, REPLIES, 0, {"candidate_reward": NAN}, "row 1 .* null_candidate_reward"),
        (evaluated, REPLIES, 0, {"champion_reward": INFINITE}, "row 1 .* champion_reward_not_finite"),
        (evaluated, REPLIES, 3, {"sample": 0}, "row 3 .*, 4 .* repeated_prompt_and_sample"),
        (evaluated, REPLIES, 3, None, "every_prompt_has_every_sample: observed 1"),
        (evaluated, REPLIES, 0, {"user_id": "u-other"}, "row 1 .* missing_prompt"),
        (evaluated, REPLIES, 0, {"prompt_id": "p1", "sample": 9}, "row 1 .* missing_prompt"),
        (evaluated, REPLIES, 0, {"instructions": []}, "row 1 .* missing_card"),
        (curated, DUPLICATES, 0, {"cosine": 1.1}, "row 1 .* cosine_no_cosine"),
        (curated, DUPLICATES, 0, {"kept_id": "p9"}, "row 1 .* repeats_itself"),
        (curated, DUPLICATES, 0, {"dropped_id": "p8"}, "row 1 .* not_removed"),
        (curated, CLUSTERS, 0, {"pruned": 5}, "row 1 .* more_pruned_than_there"),
        (curated, SAMPLE, 0, {"achieved": 9}, "row 1 .* more_than_available"),
    ],
)
def test_a_broken_row_or_table_is_named(
    tmp_path: Path,
    stage: Callable[[], tuple[Tables, Tables]],
    place: str,
    row: int,
    changes: Row | None,
    message: str,
) -> None:
    """Where there are no changes, the row is lost."""
    written, read = stage()
    if changes is None:
        del written[place][row]
    else:
        written[place][row] |= changes
    with pytest.raises(ContractError, match=message) as error:
        held(tmp_path, (written, read))
    assert "hello" not in str(error.value)


def test_a_table_of_another_split_is_not_taken_for_the_one_that_is_meant(tmp_path: Path) -> None:
    written, read = evaluated()
    del read[EVALUATION]
    with pytest.raises(ContractError, match=f"missing_prompt refers to table prompts at {EVALUATION}, which"):
        held(tmp_path, (written, read))


def test_every_signal_of_the_settings_has_its_column() -> None:
    (item, _) = get_args(SignalModels.model_fields["signals"].annotation)
    assert get_args(item) == TRAINABLE_SIGNALS
    columns = [name for name in CONTRACTS["rejection_candidates"].columns if name.startswith("p_")]
    assert columns == [f"p_{signal}" for signal in TRAINABLE_SIGNALS]
