import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.mixture import TRAFFIC, mix, take
from flywheel_tasks.policy.named_sets import load_set, load_sets, pairs_of
from flywheel_tasks.policy.prompts import Prompt, PromptError
from flywheel_tasks.policy.sft import run
from flywheel_tasks.policy.sft_data import Example
from flywheel_tasks.privacy.outgoing import OutgoingError
from flywheel_tasks.settings import SettingsError, load_settings
from tests.conftest import PROJECT, build_workspace

CARD = Card("c1", "Mira", (), ())
PRIVACY = load_settings(PROJECT / "params.yaml").privacy


def rows(source: str, count: int) -> list[Example]:
    prompts = (
        Prompt(f"{source}-{n}", "user", CARD, ({"role": "user", "content": "Hi"},)) for n in range(count)
    )
    return [Example(source, prompt, "Hello.") for prompt in prompts]


def drawn(
    counts: dict[str, int], shares: dict[str, float], **options: Any
) -> tuple[list[Example], dict[str, Any]]:
    sources = {name: rows(name, count) for name, count in counts.items()}
    return mix(sources, shares, **({"max_repeats": 4, "on_missing": "error", "seed": 7} | options))


def test_shares_are_exact_and_the_books_balance() -> None:
    counts = {"rejection_user": 50, "rejection_internal": 30, "rewrites": 10, "safety": 16, "replay": 16}
    shares = {
        "rejection_user": 0.4,
        "rejection_internal": 0.3,
        "rewrites": 0.2,
        "safety": 0.05,
        "replay": 0.05,
    }
    chosen, account = drawn(counts, shares)
    assert len(chosen) == 100
    assert Counter(row.mix for row in chosen) == {
        "rejection_user": 40,
        "rejection_internal": 30,
        "rewrites": 20,
        "safety": 5,
        "replay": 5,
    }
    assert account["sources"]["rewrites"] == {"available": 10, "used": 20, "target": 0.2, "share": 0.2}
    rewrites = Counter(row.prompt.prompt_id for row in chosen if row.mix == "rewrites")
    assert set(rewrites.values()) == {2}
    assert drawn(counts, shares) == (chosen, account)


@given(
    st.lists(st.integers(1, 40), min_size=5, max_size=5),
    st.lists(st.integers(1, 20), min_size=5, max_size=5),
)
def test_no_share_is_off_by_more_than_a_row(counts: list[int], weights: list[int]) -> None:
    names = [*TRAFFIC, "safety", "replay"]
    shares = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
    chosen, account = drawn(dict(zip(names, counts, strict=True)), shares, max_repeats=10_000)
    for name, part in account["sources"].items():
        assert abs(part["used"] - shares[name] * len(chosen)) <= 1
        assert part["used"] == sum(row.mix == name for row in chosen)


def test_every_row_is_used_before_one_is_used_again() -> None:
    names = [f"r{n}" for n in range(5)]
    assert sorted(take(names, 5, names, 1, "x")) == names
    assert set(Counter(take(names, 13, names, 1, "x")).values()) == {2, 3}


def test_a_source_without_rows_is_an_error_or_its_share_goes_to_the_others() -> None:
    counts = {"rejection_user": 10, "rejection_internal": 0, "rewrites": 10}
    shares = {"rejection_user": 0.4, "rejection_internal": 0.2, "rewrites": 0.4}
    with pytest.raises(PromptError, match="no rows for rejection_internal"):
        drawn(counts, shares)
    chosen, account = drawn(counts, shares, on_missing="redistribute")
    assert Counter(row.mix for row in chosen) == {"rejection_user": 10, "rewrites": 10}
    assert account["missing"] == ["rejection_internal"]
    with pytest.raises(PromptError, match="no source has any row"):
        drawn(dict.fromkeys(TRAFFIC, 0), shares, on_missing="redistribute")


def test_a_row_is_not_repeated_without_end() -> None:
    with pytest.raises(PromptError, match="rewrites needs 50 rows for its share of 50%, and has 2"):
        drawn({"rejection_user": 98, "rewrites": 2}, {"rejection_user": 0.5, "rewrites": 0.5})


def test_the_shipped_sets_are_whole() -> None:
    shares = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["sft"]["mixture"]
    names = [name for name in shares if name not in TRAFFIC]
    sets = load_sets(PROJECT / "sets", names, PRIVACY)
    assert {name: len(found) for name, found in sets.items()} == dict.fromkeys(names, 16)
    pairs = {name: len(pairs_of(found)) for name, found in sets.items()}
    assert pairs == {"safety": 16, "tool_calls": 16, "replay": 0}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("not json", "JSONDecodeError"),
        ({"reply": " "}, "reply is empty"),
        ({"card": {"name": "A"}}, "KeyError: 'traits'"),
        ({"card": {"name": "A", "traits": "x", "instructions": []}}, "card.traits: must be a list of texts"),
        ({"card": {"name": "A", "traits": [], "instructions": "x"}}, "card.instructions: must be a list"),
        ({"card": {"name": None, "traits": [], "instructions": []}}, "card.name: a text must be there"),
        ({"history": []}, "history does not end"),
        ({"history": [{"role": "system", "content": "x"}]}, "history.role: turn 0"),
        ({"history": [{"role": "user", "content": None}]}, "history.content: turn 0: a text must be"),
        ({"trigger": "explict"}, "trigger is 'explict', none of explicit, implicit, none"),
        ({"reply": "<tool_call>{}</tool_call>"}, "names none of draw_picture"),
        ({"trigger": "explicit"}, "trigger is explicit, but the reply does not call"),
        ({"rejected": "Hello. "}, "rejected is the reply itself"),
        ({"rejected": ""}, "rejected is empty"),
        ({"rejected": 3}, "AttributeError"),
        ({"id": None}, "id: a text or a whole number must be there"),
        ({"id": 1.5}, "id: a text or a whole number"),
        ({"id": True}, "id: a text or a whole number"),
        ({"id": ""}, "id: a text or a whole number"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, change: Any, complaint: str) -> None:
    good = {
        "id": "a",
        "card": {"name": "A", "traits": [], "instructions": []},
        "history": [{"role": "user", "content": "Hi"}],
        "reply": "Hello.",
    }
    bad = change if isinstance(change, str) else json.dumps(good | {"id": "b"} | change)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(good) + "\n" + bad + "\n")
    with pytest.raises(PromptError, match=rf"mine\.jsonl:2: .*{complaint}"):
        load_set(path)
    path.write_text(2 * (json.dumps(good) + "\n"))
    with pytest.raises(PromptError, match=r"mine\.jsonl:2: id a repeats"):
        load_set(path)


def test_a_set_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "safety.jsonl"
    path.write_bytes(BOM_UTF8 + Path("sets/safety.jsonl").read_bytes())
    assert load_set(path) == load_set(Path("sets/safety.jsonl"))


def test_a_whole_number_as_id_is_a_text_from_then_on(tmp_path: Path) -> None:
    row = {
        "card": {"name": "A", "traits": [], "instructions": []},
        "history": [{"role": "user", "content": "Hi"}],
        "reply": "Hello.",
    }
    path = tmp_path / "adhoc.jsonl"
    path.write_text("".join(json.dumps(row | {"id": id_}) + "\n" for id_ in (2, "x", 10)))
    found = load_set(path)
    assert [example.prompt.prompt_id for example in found] == ["10", "2", "x"]
    rows, _ = mix({"adhoc": found}, {"adhoc": 1.0}, max_repeats=1, on_missing="error", seed=1)
    assert len(rows) == 3
    path.write_text("".join(json.dumps(row | {"id": id_}) + "\n" for id_ in (2, "2")))
    with pytest.raises(PromptError, match=r"adhoc\.jsonl:2: id 2 repeats"):
        load_set(path)


@pytest.mark.parametrize(
    ("rejected", "kind"), [("Write to anna@example.org.", "EMAIL"), ("Text me: 07911 123456", "PHONE")]
)
def test_what_a_team_copied_from_production_is_scanned_before_it_is_learned(
    rejected: str, kind: str, tmp_path: Path
) -> None:
    row = {
        "id": "a",
        "card": {"name": "A", "traits": [], "instructions": []},
        "history": [{"role": "user", "content": "Hi"}],
        "reply": "Hello.",
        "rejected": rejected,
    }
    (tmp_path / "adhoc.jsonl").write_text(json.dumps(row))
    with pytest.raises(OutgoingError, match=rf"/adhoc\.jsonl: a: rejected: {kind}") as error:
        load_sets(tmp_path, ["adhoc"], PRIVACY)
    assert rejected not in str(error.value)
    kept = PRIVACY.model_copy(update={"policy": {**PRIVACY.policy, kind: "keep"}})
    assert load_sets(tmp_path, ["adhoc"], kept)["adhoc"][0].rejected == rejected


def test_shares_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    root = build_workspace(tmp_path, {"sft.mixture": {"rewrites": 0.5}})
    with pytest.raises(SettingsError, match=r"sft: .*add up to 0\.5"):
        load_settings(root / "params.yaml")


def test_the_stage_trains_on_the_named_sets_too(policy_io: Callable[..., Any]) -> None:
    shares = {
        "rejection_user": 0.4,
        "rejection_internal": 0.2,
        "rewrites": 0.2,
        "safety": 0.1,
        "tool_calls": 0.1,
    }
    metrics = run(policy_io("sft", {"sft.mixture": shares}))
    used = {name: part["used"] for name, part in metrics["mixture"]["sources"].items()}
    assert sum(used.values()) == metrics["rows"]
    assert used["safety"] == used["tool_calls"] > 0
