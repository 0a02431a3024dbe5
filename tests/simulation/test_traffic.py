import gzip
import statistics
from collections import Counter
from datetime import date

import orjson
import pytest
from scipy.stats import chi2_contingency, kendalltau

from flywheel_tasks.simulation.cards import load_cards
from flywheel_tasks.simulation.events import TrafficError, card_events, read_marker, write_partitions
from flywheel_tasks.simulation.population import make_population
from flywheel_tasks.simulation.traffic import Arm, Schedule, parse_day, simulate
from flywheel_tasks.simulation.utility import utility
from flywheel_tasks.traffic.events import parse_event
from tests.simulation.replies import PoolSampler

CARDS = load_cards()
ASKED = {"role": "user", "content": "My boots never dry."}
SCHEDULE = Schedule("traffic-2026-11-02", date(2026, 11, 2), 7, 3, 7)


def events_of(sampler, users=40, schedule=SCHEDULE):
    arm = Arm("base", "base@1", sampler)
    return simulate(make_population(7, users, 0.3, CARDS), CARDS, lambda _: arm, schedule)


@pytest.fixture(scope="module")
def events():
    return events_of(PoolSampler(), users=110)


def messages_of(events):
    return [event for event in events if event["type"] == "message"]


def test_every_event_is_in_the_raw_log_format(events):
    for event in [*card_events(CARDS, parse_time("2026-11-02T00:00:00Z"), "r"), *events]:
        parsed = parse_event(event)
        assert parsed.unknown == ()
    assert len({event["event_id"] for event in events}) == len(events)


def parse_time(text):
    from datetime import datetime

    return datetime.fromisoformat(text)


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_partitions(events_of(PoolSampler()), tmp_path / name, "traffic", "2026-11-02")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 8  # seven days and the marker
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_another_seed_writes_other_traffic():
    other = Schedule("traffic-2026-11-02", date(2026, 11, 2), 7, 3, 8)
    assert events_of(PoolSampler()) != events_of(PoolSampler(), schedule=other)


def test_replies_answer_user_turns_and_regenerated_ones_are_siblings(events):
    by_id = {event["message_id"]: event for event in messages_of(events)}
    siblings = Counter()
    for message in by_id.values():
        if message["parent_id"] is not None:
            parent = by_id[message["parent_id"]]
            assert parent["role"] != message["role"]
            assert parent["time"] < message["time"]
            assert parent["conversation_id"] == message["conversation_id"]
        if message["role"] == "assistant":
            assert message["model"] == "base@1"
            siblings[message["parent_id"]] += 1
    again = {e["message_id"] for e in events if e["type"] == "signal" and e["signal"] == "regenerate"}
    assert again
    assert {parent for parent, count in siblings.items() if count == 2} == {
        by_id[m]["parent_id"] for m in again
    }
    assert max(siblings.values()) == 2


def test_most_turns_with_a_reply(events):
    answered = Counter(
        (event["conversation_id"])
        for event in messages_of(events)
        if event["role"] == "assistant" and not _regenerated(event, events)
    )
    assert max(answered.values()) == 3


def _regenerated(event, events):
    key = (event["message_id"], "regenerate")
    return key in {(e["message_id"], e["signal"]) for e in events if e["type"] == "signal"}


def test_all_open_conversations_are_answered_by_one_draw_a_round():
    sampler = PoolSampler()
    events_of(sampler)
    assert sampler.calls[0][0] > 30
    assert all(n == 1 for _, n, _ in sampler.calls)
    assert len(sampler.calls) < 40
    assert len({seed for _, _, seed in sampler.calls}) == len(sampler.calls)


def test_people_talk_longer_and_thumb_up_more_with_a_better_model():
    good = PoolSampler(
        ("I hear you, and my tea is getting cold over it. What happened to the garden, dear?",)
    )
    bad = PoolSampler(("I'm sorry, but as an AI I can't have feelings. I can't have feelings. I can't have",))
    logs = [events_of(sampler, 80) for sampler in (good, bad)]
    assert len(messages_of(logs[0])) > 1.3 * len(messages_of(logs[1]))
    ups = [sum(event.get("signal") == "thumb_up" for event in log) for log in logs]
    downs = [sum(event.get("signal") == "thumb_down" for event in log) for log in logs]
    assert ups[0] > ups[1]
    assert downs[0] < downs[1]


LADDER = (  # each a fault better than the one before
    "I'm sorry, but as an AI I can't have feelings. I can't have feelings. I can't have",
    "It sounds like you're busy. Let me know if you need more",
    "I had one once, and it rained.",
    "I had one of those once, dear, and my tea went cold over it. What happened next?",
)


def test_more_utility_means_more_breadth_and_more_depth():
    """Kendall's trend over a ladder of models, for people who came back and for messages of those who talked."""
    back, depth, worth = [], [], []
    for number, reply in enumerate(LADDER):
        said = [e for e in messages_of(events_of(PoolSampler((reply,)), 220)) if e["role"] == "user"]
        days, count = {}, Counter(e["user_id"] for e in said)
        for event in said:
            days.setdefault(event["user_id"], set()).add(event["conversation_id"])
        back += [(number, len(found) > 1) for found in days.values()]
        depth += [(number, messages) for messages in count.values()]
        worth.append(statistics.mean(utility(card, [ASKED], reply) for card in CARDS))
    assert worth == sorted(worth)
    for rows in (back, depth):
        trend = kendalltau(*zip(*rows, strict=True))
        assert trend.statistic > 0.1
        assert trend.pvalue < 1e-4


def test_what_an_arm_says_moves_its_breadth():
    """Writing again after the exposure, which is what the analysis counts as active, depends on the arm's replies."""
    arms = {"control": Arm("control", "g1-control", PoolSampler((LADDER[0],)))}
    arms["candidate"] = Arm("candidate", "g1", PoolSampler((LADDER[-1],)))
    users = make_population(7, 400, 0.3, CARDS)
    home = {user.user_id: ("control", "candidate")[number % 2] for number, user in enumerate(users)}
    schedule = Schedule("ab-g1", date(2026, 11, 9), 7, 3, 7, "g1")
    events = simulate(users, CARDS, lambda user: arms[home[user.user_id]], schedule)
    shown = {}
    for event in sorted(events, key=lambda e: e["time"]):
        if event["type"] == "exposure":
            shown.setdefault(event["user_id"], event["time"])
    active = {e["user_id"] for e in events if e.get("role") == "user" and e["time"] > shown[e["user_id"]]}
    counts = [[0, 0], [0, 0]]
    for user in shown:
        counts[home[user] == "candidate"][user in active] += 1
    assert counts[1][1] > counts[0][1]
    assert chi2_contingency(counts).pvalue < 1e-4


def test_people_differ_in_activity_and_in_noise():
    users = make_population(7, 400, 0.3, CARDS)
    assert 0.95 < statistics.mean(user.activity for user in users) < 1.05
    assert statistics.pstdev(user.activity for user in users) > 0.25
    assert 0.5 <= min(user.mood for user in users) < max(user.mood for user in users) <= 0.9


def test_an_experiment_logs_exposures_of_both_arms_and_nobody_else():
    arms = {
        "control": Arm("control", "g1-control", PoolSampler()),
        "candidate": Arm("candidate", "g1", PoolSampler()),
    }
    users = make_population(7, 60, 0.3, CARDS)
    home = {user.user_id: ("control", "candidate", None)[number % 3] for number, user in enumerate(users)}
    schedule = Schedule("ab-g1", date(2026, 11, 9), 7, 3, 7, "g1")
    events = simulate(users, CARDS, lambda user: arms.get(home[user.user_id]), schedule)
    exposed = {e["user_id"]: e["arm"] for e in events if e["type"] == "exposure"}
    assert exposed.items() <= home.items()
    assert set(exposed) == {
        e["user_id"] for e in events if e["type"] == "message"
    }  # who says nothing saw no model
    assert len(exposed) < sum(arm is not None for arm in home.values())
    shown, said = {}, {}
    for event in sorted(events, key=lambda e: e["time"]):
        if event["type"] == "exposure":
            shown.setdefault(event["user_id"], event["time"])
        if event["type"] == "message":
            said.setdefault(event["user_id"], event["time"])
        if event.get("role") == "assistant":
            assert event["model"] == arms[exposed[event["user_id"]]].policy
    assert shown == said  # at the time of the message that the arm answers, as the gateway logs it


def test_a_second_run_adds_partitions_and_real_logs_are_refused(tmp_path):
    events = events_of(PoolSampler(), users=5)
    write_partitions(events, tmp_path / "logs", "traffic", "2026-11-02")
    write_partitions(events, tmp_path / "logs", "ab-g1", "2026-11-09")
    assert sorted(read_marker(tmp_path / "logs")["runs"]) == ["ab-g1", "traffic"]
    (tmp_path / "real" / "date=2026-01-01").mkdir(parents=True)
    with pytest.raises(TrafficError, match="not simulated"):
        write_partitions(events, tmp_path / "real", "traffic", "2026-11-02")


def test_lines_are_sorted_json_in_the_partition_of_their_day(tmp_path):
    write_partitions(events_of(PoolSampler()), tmp_path, "traffic", "2026-11-02")
    for path in tmp_path.glob("date=*/*.jsonl.gz"):
        rows = [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert rows == sorted(rows, key=lambda row: (row["time"], row["event_id"]))
        assert {row["time"][:10] for row in rows} == {path.parent.name.removeprefix("date=")}


def test_a_bad_day_names_the_setting():
    with pytest.raises(TrafficError, match=r"simulation\.start_date"):
        parse_day("2026-13-01", "simulation.start_date")


def test_a_sampler_that_loses_replies_is_an_error():
    class Short(PoolSampler):
        def sample(self, prompts, n, seed, progress=None):
            return super().sample(prompts, n, seed)[1:]

    with pytest.raises(TrafficError, match="replies to"):
        events_of(Short(), users=3)
