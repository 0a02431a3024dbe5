"""What an A/B test makes of the replies that the gateway logs: refused, cut short, stood in for, greetings."""

from pathlib import Path

import pytest

from flywheel_tasks.online.exposed import population
from flywheel_tasks.online.guardrails import look_document
from flywheel_tasks.online.log_events import open_events
from tests.dags.small import write_logs
from tests.online.people import make_plan
from tests.online.spooled import spooled
from tests.online.tables import PLAN, WINDOW, figures, settings_of, write_tables


def test_latency_and_refused_replies_of_the_gateway_count(root: Path, events: list[dict]) -> None:
    replies = [event for event in events if event.get("role") == "assistant"]
    for number, event in enumerate(replies):
        event["latency_ms"] = 100.4 + number % 3
    replies[0] |= {"model": None, "parent_id": "asked", "refused_model": "g0001"}
    replies[1]["latency_ms"] = "fast"  # not what it should be: not counted
    write_logs(root, "date=2026-11-09", events)
    found = figures(root)["metrics"]
    assert 100 <= found["latency_ms"]["control"] <= 102
    assert found["safety_violation_per_reply"]["absent"] is None
    assert found["report_per_reply"]["absent"] == "no report in the logs"


def test_a_reply_that_was_cut_short_is_a_reply_and_a_violation(events: list[dict]) -> None:
    cut = next(event for event in events if event.get("role") == "assistant") | {"refused_model": "g0001"}
    assert cut["model"] is not None  # what was shown before is the model's
    reader, (reply, violation) = spooled([cut], PLAN)
    assert (reply["kind"], violation["kind"]) == ("reply", "safety_violation")
    assert (violation["user"], violation["time"]) == (reply["user"], reply["time"])
    assert (violation["event"] == reply["event"], reader.counts()["unreadable"]) == (False, 0)


def test_a_greeting_is_no_reply_of_an_arm(root: Path, events: list[dict]) -> None:
    before = figures(root)
    said = [event for event in events if event.get("role") == "user"]
    greetings = [
        event
        | {"role": "assistant", "model": None, "parent_id": None}
        | {name: f"greeting-{event[name]}" for name in ("event_id", "message_id")}
        for event in said
    ]
    write_logs(root, "date=2026-11-09", events + greetings)
    after = figures(root)
    assert len(greetings) > 100
    assert after["metrics"] == before["metrics"]
    write_tables(root / "tables", events + greetings)
    assert figures(root, events="tables")["metrics"] == before["metrics"]


@pytest.mark.parametrize(("reason", "kinds"), [("failed", 2), ("not_ready", 2), ("loading", 1), (7, 1)])
def test_a_champions_reply_in_place_of_a_failed_one_is_a_fallback(
    events: list[dict], reason: object, kinds: int
) -> None:
    """Neither its latency nor its violation is the arm's."""
    more = {"fallback": reason, "latency_ms": 100, "refused_model": "base"}
    stood_in = next(event for event in events if event.get("role") == "assistant") | more
    if reason == 7:  # not what it should be
        del stood_in["refused_model"]
    _, found = spooled([stood_in], PLAN)
    assert [row["kind"] for row in found] == ["reply", "fallback"][:kinds]
    assert len({row["event"] for row in found}) == kinds
    assert [row.get("milliseconds") for row in found] == [100 if reason == 7 else None, None][:kinds]


@pytest.mark.parametrize(("tolerated", "result"), [(0.01, "stop"), (0.5, "go_on")])
def test_a_candidate_that_fails_part_of_the_time_is_stopped(
    root: Path, events: list[dict], tolerated: float, result: str
) -> None:
    """Whoever the champion stood in for is as content as anyone: only the fallbacks tell."""
    arms = {event["user_id"]: event["arm"] for event in events if event["type"] == "exposure"}
    replies = [event for event in events if event.get("role") == "assistant"]
    for number, event in enumerate(replies):
        if arms[event["user_id"]] == "candidate" and number % 3 == 0:
            event |= {"fallback": "failed", "model": "base"}
    write_logs(root, "date=2026-11-09", events)
    settings = settings_of(root)
    assert "fallback_per_reply" in settings.ab.guardrails
    plan = make_plan(rule=settings.ab.rule.model_copy(update={"tolerated_fallback": tolerated}))
    with open_events(settings, root, plan) as found:
        look = look_document(plan, population(found, WINDOW, plan.rule))
    assert look["result"] == result, look
    if result == "go_on":
        return
    assert look["reasons"][0].startswith("Fallbacks to the champion per reply: worse than none")
    document = figures(root)["metrics"]["fallback_per_reply"]
    assert (document["control"], document["absent"]) == (0, None)
    assert 0.2 < document["candidate"] < 0.5
