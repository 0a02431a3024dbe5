"""Why a test proves nothing: what is wrong with who was drawn, who saw what, and which logs are there."""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import ibis
import numpy as np
import tea_tasting as tt

from flywheel_tasks.online.days import ARMS, DayLogs
from flywheel_tasks.online.exposed import COUNTED, Population
from flywheel_tasks.online.metrics import BALANCE, METRICS
from flywheel_tasks.online.sums import Sums
from flywheel_tasks.storage.experiment_records import Plan, Rule

# Below this the two arms' sizes are taken as wrongly drawn or wrongly logged (sample ratio mismatch). The same
# level, shared by its checks, for the balance before the test. Both look for faults, not for effects.
SRM_PVALUE = 0.001
# Exposures that may lack what says whose they are, as a few lines of any export do: this share, or so few.
_TRACE, _FEW = 0.001, 10
# Signals that users give, if they do; the others come of replies, and may all be missing from good logs.
GIVEN = ("thumb_up", "thumb_down", "love", "regenerate", "report")
# How active an arm's users are at least, by those of the other: a candidate may silence nearly everybody, but none
# doubles what people do.
_LEAST_ACTIVE = {"control": 0.5, "candidate": 0.1}
# What metrics are told per, as the logs have it.
_PER = {"replies": "replies", "timed_replies": "replies with a latency", "active": "users who wrote"}


def sample_ratio(sizes: Mapping[str, int], plan: Plan) -> float:
    """P-value of the arms' sizes under the plan's shares (exact binomial test for less than 1,000 users).

    Args:
        sizes: users by arm, control and candidate.
        plan: of the test.
    """
    shares = {arm.name: arm.share for arm in plan.arms}
    users = {arm: tt.aggr.Aggregates(count_=sizes[arm]) for arm in ARMS}
    check = tt.SampleRatio(shares["candidate"] / shares["control"])
    return float(check.analyze(users, "control", "candidate", "arm").pvalue)


def exposure_faults(found: Population, plan: Plan) -> list[str]:
    """What is wrong with who saw what, as sentences; numbers of users, never their ids."""
    users = found.users
    nameless = users.arm.isnull() | (users.arm == "")
    unknown = ~nameless & ~users.arm.isin([arm.name for arm in plan.arms])
    checked = "assigned" in users.columns
    misplaced = (users.arms == 1) & ~nameless & ~unknown & ~users.assigned if checked else ibis.literal(False)
    counts = (
        users.aggregate(
            nameless=users.count(where=nameless),
            unknown=users.count(where=unknown),
            both=users.count(where=users.arms > 1),
            misplaced=users.count(where=misplaced),
        )
        .to_pyarrow()
        .to_pylist()[0]
    )
    faults = [
        (counts["nameless"], "were exposed to an arm that has no name"),
        (counts["unknown"], "were exposed to an arm that the plan does not have"),
        (counts["both"], "were exposed to more than one arm"),
        (counts["misplaced"], "were exposed to an arm that the plan does not give them"),
    ]
    lost = found.description.get("exposures_without", {})
    counted = sum(logs.exposures for arms in found.by_day for logs in arms.values())
    most = max(_FEW, _TRACE * (counted + sum(lost.values())))
    return [f"{number} users {what}" for number, what in faults if number] + [
        f"{number} exposures have no {column}, and count for nobody"
        for column, number in lost.items()
        if number > most
    ]


def balance(arms: Mapping[str, Sums]) -> dict[str, float | None]:
    """P-values of differences before the test, by column; null where nobody did anything then."""
    found: dict[str, float | None] = {}
    for column in BALANCE:
        with np.errstate(divide="ignore", invalid="ignore"):
            result = tt.Mean(column).analyze_aggregates(*(arms[arm].aggregates() for arm in ARMS))
        found[column] = float(result.pvalue) if math.isfinite(result.pvalue) else None
    return found


def balance_faults(found: Mapping[str, float | None]) -> list[str]:
    """Differences before the test that chance does not explain, as sentences."""
    limit = SRM_PVALUE / len(found)
    return [
        f"the arms differed before the test: {column} (p = {value:.2g} < {limit:g})"
        for column, value in found.items()
        if value is not None and value < limit
    ]


def size_faults(sizes: Mapping[str, int], least: int, ratio: float | None) -> list[str]:
    """Arms that are too small, or whose sizes do not fit their shares, as sentences."""
    faults = [
        f"{size} users in arm {arm}, at least {least} are needed"
        for arm, size in sizes.items()
        if size < least
    ]
    if ratio is not None and not ratio >= SRM_PVALUE:
        faults.append(f"the arms' sizes do not fit their shares (p = {ratio:.2g} < {SRM_PVALUE})")
    return faults


def day_faults(found: Population, plan: Plan, *, over: bool = False) -> list[str]:
    """Days of the test without logs, of both arms or of one, as sentences.

    Args:
        found: the users.
        plan: of the test.
        over: a last day that has only begun need not have logs; those of one arm must not come without the other's.
    """
    done = (found.window.end - found.window.start) // timedelta(days=1) if over else found.window.days
    of_one = one_arm_days(found, plan)
    faults = []
    for day in range(len(found.by_day)):
        exposures, messages = of_both(found, day)
        if (not exposures or not messages) and day < done:
            faults.append(f"{_name(found, day)} has no logs: {exposures} exposures, {messages} messages")
        faults += of_one.get(day, ())
    return faults


def one_arm_days(found: Population, plan: Plan) -> dict[int, list[str]]:
    """Days of the test that have logs of one arm only, by number from 0, with what they lack as sentences."""
    shares: dict[str, float] = {arm.name: arm.share / plan.share for arm in plan.arms}
    faults: dict[int, list[str]] = {}
    for day, arms in enumerate(found.by_day):
        if 0 in of_both(found, day):
            continue
        for arm, other in (ARMS, ARMS[::-1]):
            if lost := _lost(arms[arm], arms[other], shares[arm], _LEAST_ACTIVE[arm]):
                faults.setdefault(day, []).append(
                    f"{_name(found, day)} has no {' and no '.join(lost)} of arm {arm}, and has them of arm {other}"
                )
    return faults


def _name(found: Population, day: int) -> str:
    return f"day {day + 1} of {found.window.days}"


def of_both(found: Population, day: int) -> tuple[int, int]:
    """Exposures and messages of a day, of both arms."""
    arms = found.by_day[day].values()
    return sum(logs.exposures for logs in arms), sum(logs.messages for logs in arms)


def _lost(arm: DayLogs, other: DayLogs, share: float, active: float) -> list[str]:
    """What must have been logged of an arm on a day: too many users of the other say so for it to be chance.

    An exposure comes with a message and the reply to it. So an arm whose users write no more is known by these, and one
    whose model does not answer by the champion's replies in its place; neither lacks logs.

    Args:
        arm: what there is of it.
        other: what there is of the other.
        share: of the arm in all users of the test.
        active: how active its users are at least, by those of the other.
    """
    weight = share * active / (share * active + 1 - share)
    none_came = not arm.entrants and (1 - share) ** other.entrants < SRM_PVALUE

    def is_no_chance(users: int) -> bool:
        return none_came or (1 - weight) ** users < SRM_PVALUE

    lost = []
    shown_to = min(other.exposures, other.entrants + other.writers)
    if not arm.exposures and not arm.fallbacks and is_no_chance(shown_to):
        lost.append("exposures")
    if not arm.messages and not arm.answers and is_no_chance(other.writers):
        lost.append("messages")
    return lost


def guardrail_faults(arms: Mapping[str, Sums], rule: Rule) -> list[str]:
    """Guardrails that the logs cannot measure, as sentences: nobody would see whom the candidate harms.

    One signal that nobody gave is rare, not missing. Logs without any signal are those of an export that lost them, or
    calls them by other names.

    Args:
        arms: sums of both arms.
        rule: of the plan.
    """

    def never(*columns: str) -> bool:
        return not any(sums.total(column) for sums in arms.values() for column in columns)

    untold: dict[str, list[str]] = {}
    for name in rule.guardrails:
        metric = METRICS[name]
        lacking = [arm for arm in ARMS if metric.denom and not arms[arm].total(metric.denom)]
        if lacking and metric.denom:
            untold.setdefault(f"no {_PER[metric.denom]} in arm {' and '.join(lacking)}", []).append(name)
        elif metric.numer in GIVEN and never(*GIVEN):
            untold.setdefault("no signal of any kind in either arm", []).append(name)
        elif metric.numer not in COUNTED and never(metric.numer):
            untold.setdefault(f"{metric.numer} is zero for everyone", []).append(name)
    return [f"{', '.join(names)} cannot be told: {why}" for why, names in untold.items()]


def facts(arms: Mapping[str, Sums], plan: Plan) -> dict[str, Any]:
    """Sizes and the two checks' p-values, for the document."""
    sizes = {arm: arms[arm].n if arm in arms else 0 for arm in ARMS}
    large = min(sizes.values()) > 1
    return {
        "users": sizes,
        "sample_ratio": {"pvalue": sample_ratio(sizes, plan) if large else None},
        "balance": balance(arms) if large else dict.fromkeys(BALANCE),
    }
