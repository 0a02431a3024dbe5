"""Populations of A/B tests for tests: given columns, or drawn by numpy."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import numpy as np
import pyarrow as pa

from flywheel_tasks.online.days import ARMS, DayLogs
from flywheel_tasks.online.exposed import COUNTED, Population, Window
from flywheel_tasks.online.metrics import pairs
from flywheel_tasks.online.sums import Sums
from flywheel_tasks.storage.registry_state import Arm, Plan, Rule

DIGEST = "sha256:" + "0" * 64
START = datetime(2026, 11, 9, tzinfo=UTC)
WATCHED = ("thumb_down_per_reply", "regenerate_per_reply", "latency_ms")
RULE = Rule(min_users_per_arm=20, planned_users=400, guardrails=WATCHED)


def make_plan(name: str = "g0001", share: float = 0.5, salt: str = "s", **changes: Any) -> Plan:
    """A plan of two arms."""
    arms = (
        Arm(name="control", share=share, model="base", digest="sha256:" + "1" * 64),
        Arm(name="candidate", share=share, model=name, digest=DIGEST),
    )
    fields: dict[str, Any] = {"layer": "policy", "rule": RULE} | changes
    return Plan(
        experiment=name,
        generation=name,
        salt=salt,
        arms=arms,
        verdict_digest=DIGEST,
        model_digest=DIGEST,
        **fields,
    )


def columns(n: int | tuple[int, int], days: int = 1, **given: Any) -> dict[str, np.ndarray]:
    """All columns of n users (or of tests and users), zero where not given; messages without a day are on the last."""
    names = ["replies", "milliseconds", "timed_replies", "pre_messages", "pre_replies", "day", *COUNTED]
    names += [f"pre_{name}" for name in COUNTED] + [f"messages_{day}" for day in range(days)]
    found = {name: np.zeros(n, dtype=np.int64) for name in names} | {
        name: np.asarray(value) for name, value in given.items()
    }
    if "messages" in found:
        found[f"messages_{days - 1}"] = found["messages"]
    daily = np.stack([found[f"messages_{day}"] for day in range(days)])
    return found | {
        "messages": daily.sum(axis=0),
        "active": (daily.sum(axis=0) > 0).astype(np.int64),
        "active_days": (daily > 0).sum(axis=0),
        "pre_active": (found["pre_messages"] > 0).astype(np.int64),
    }


def population(
    arm: np.ndarray,
    found: Mapping[str, np.ndarray],
    days: int = 1,
    changes: Mapping[str, np.ndarray] | None = None,
) -> Population:
    """The population of these users, every one in the arm that the plan gives them; ``changes`` replace columns."""
    n = len(arm)
    table = {"arm": arm, "arms": np.ones(n, dtype=np.int64), "assigned": np.ones(n, dtype=bool)}
    past = np.asarray(found["pre_messages"])
    cohort = np.where(past >= 20, "regular", np.where(past > 0, "occasional", "new"))
    users = {**table, **found, "cohort": cohort, **(changes or {})}
    return Population(
        users=ibis.memtable(pa.table(users)),
        window=Window(START, START + timedelta(days=days)),
        by_day=tuple({name: logs_of(arm == name, found, day) for name in ARMS} for day in range(days)),
        description={"from": "test"},
    )


def logs_of(rows: np.ndarray, found: Mapping[str, np.ndarray], day: int) -> DayLogs:
    """What the logs hold of some users on a day on which all of them were exposed."""
    messages = np.asarray(found[f"messages_{day}"])[rows]
    return DayLogs(
        exposures=int(rows.sum()),
        messages=int(messages.sum()),
        writers=int((messages > 0).sum()),
        entrants=int((np.asarray(found["day"])[rows] == day).sum()),
    )


def sums_of(found: Mapping[str, np.ndarray], rows: np.ndarray) -> Sums:
    """The sums of some users, by numpy."""
    wanted = pairs()
    columns_ = sorted({name for pair in wanted for name in pair})
    products = sorted({(min(pair), max(pair)) for pair in wanted} | {(name, name) for name in columns_})
    part = {name: np.asarray(found[name])[rows] for name in columns_}
    return Sums(
        n=int(np.count_nonzero(rows)),
        sums={name: int(part[name].sum()) for name in columns_},
        products={(a, b): int(part[a] @ part[b]) for a, b in products},
    )


def drawn(
    generator: np.random.Generator, n: int, lift: float = 0.0, days: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users whose activity is skewed, who differ from one another, and who have a past; half in each arm.

    Args:
        generator: draws them.
        n: users.
        lift: of the candidate's messages, as a share.
        days: of the test.
    """
    arm = np.where(generator.random(n) < 0.5, "candidate", "control")
    taste = generator.gamma(0.7, 1.0, n)
    rate = taste * np.where(arm == "candidate", 1 + lift, 1.0)
    daily = {f"messages_{day}": generator.poisson(2.5 * rate / days) for day in range(days)}
    messages = sum(daily.values())
    past = generator.poisson(2.5 * taste)
    replies = messages + generator.poisson(0.1 * messages)
    rates = {"thumb_up": 0.12, "thumb_down": 0.06, "love": 0.05, "regenerate": 0.08, "report": 0.02}
    rates["safety_violation"] = 0.02
    signals = {name: generator.binomial(replies, share) for name, share in rates.items()}
    pre = {f"pre_{name}": generator.binomial(past, share) for name, share in rates.items()}
    timed = {"timed_replies": replies, "milliseconds": generator.poisson(900, n) * replies}
    signals["fallback"], pre["pre_fallback"] = (generator.binomial(of, 0.02) for of in (replies, past))
    return arm, columns(
        n, days, **daily, replies=replies, pre_messages=past, pre_replies=past, **signals, **pre, **timed
    )
