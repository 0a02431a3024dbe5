"""Are the figures of an A/B analysis what they claim to be? Simulated tests, thousands of them, through the real code.

A/A: 2,000 tests without an effect, each of 7 days, users entering on the first four. Per metric, raw and with CUPED:
the share of tests that are "significant" at 5% (false positives) and of intervals that hold the truth; the share that
is "significant" on any of 7 daily looks, by the fixed-horizon p-value (the peer: what peeking costs) and by the
always-valid one. Then: the power at the size that ``flywheel ab plan`` computes, and the coverage under a true effect;
the sample-ratio check.

    python -m benchmarks.experiments_calibration --tests 2000 [--power-only] [--ends-only]
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.stats import binom

from benchmarks.many_tests import Ends, arms_of_tests, compare_many, sums_of_tests
from flywheel_tasks.online.checks import SRM_PVALUE, sample_ratio
from flywheel_tasks.online.design import users_needed
from flywheel_tasks.online.exposed import COUNTED
from flywheel_tasks.online.metrics import ESTIMATES, METRICS, Estimate, Metric, always_valid, compare, pairs
from flywheel_tasks.online.sums import Sums
from tests.online.people import columns, make_plan, sums_of

ALPHA, DAYS, USERS = 0.05, 7, 2_000
_AT_ONCE = 100  # tests
LOOKED_AT = ("breadth", "depth", "thumb_down_per_reply")
ROWS = tuple(
    (metric, estimate)
    for metric in METRICS.values()
    for estimate in ESTIMATES
    if estimate == "raw" or metric.covariate
)
RATES = dict(zip(COUNTED, (0.12, 0.06, 0.05, 0.08, 0.02, 0.02, 0.02), strict=True))


def stream(
    generator: np.random.Generator, shape: int | tuple[int, int], *, end_only: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Tests without an effect as they stand at the end of each day.

    Activity differs between users (gamma), is the same in kind before the test (the past of CUPED), and is cumulative.

    Args:
        generator: draws them.
        shape: users of both arms, in the end; or tests and users.
        end_only: only as they stand at the end of the last day.

    Yields:
        who is in the candidate arm, who has entered, and their columns.
    """
    arm = generator.random(shape) < 0.5
    entry = generator.integers(0, 4, shape)
    taste = generator.gamma(0.7, 1.0, shape)
    past = generator.poisson(3 * taste)
    before = {f"pre_{name}": generator.binomial(past, share) for name, share in RATES.items()}
    daily: dict[str, np.ndarray] = {}
    total = {name: np.zeros(shape, dtype=np.int64) for name in ("replies", "milliseconds", *COUNTED)}
    for day in range(DAYS):
        there = entry <= day
        daily[f"messages_{day}"] = generator.poisson(0.5 * taste) * there
        replies = daily[f"messages_{day}"] + generator.binomial(daily[f"messages_{day}"], 0.1)
        total["replies"] = total["replies"] + replies
        total["milliseconds"] = total["milliseconds"] + generator.poisson(900, shape) * replies
        for name, share in RATES.items():
            total[name] = total[name] + generator.binomial(replies, share)
        if end_only and day < DAYS - 1:
            continue
        past_columns = {"pre_messages": past, "pre_replies": past, **before}
        made = columns(shape, DAYS, **daily, **total, timed_replies=total["replies"], **past_columns)
        yield arm, there, made


def _count(said: Counter[tuple[str, str, str]], name: str, estimate: Estimate, ends: Ends) -> None:
    """Add what the ends of tests without an effect say of a metric."""
    said[name, estimate, "tests"] += len(ends.pvalue)
    said[name, estimate, "positive"] += int(np.sum(ends.pvalue < ALPHA))
    said[name, estimate, "covered"] += int(np.sum((ends.low <= 0) & (ends.high >= 0)))


def _end(metric: Metric, arms: Mapping[str, Sums], estimate: Estimate) -> Ends:
    """What the end of one test says, by the code that judges real ones."""
    found = compare(metric, arms, estimate, ALPHA)
    figures = (found.pvalue, found.rel_effect_size_ci_lower, found.rel_effect_size_ci_upper)
    return Ends(*(np.array([figure]) for figure in figures))


def one_test(
    generator: np.random.Generator, users: int = USERS, *, looks_only: bool = False
) -> Counter[tuple[str, str, str]]:
    """What one A/A test says: counts of ``(metric, estimate, what)``.

    Args:
        generator: draws it.
        users: of both arms, in the end.
        looks_only: without what its end says.
    """
    said: Counter[tuple[str, str, str]] = Counter()
    peeked, alarmed = set(), set()
    for arm, there, made in stream(generator, users):
        arms = {"control": sums_of(made, ~arm & there), "candidate": sums_of(made, arm & there)}
        for name in LOOKED_AT:
            for estimate in ESTIMATES:
                view = always_valid(METRICS[name], arms, estimate, users, ALPHA)
                if view["pvalue"] < ALPHA:
                    alarmed.add((name, estimate))
                if abs(view["z"]) > 1.959964:
                    peeked.add((name, estimate))
    for metric, estimate in () if looks_only else ROWS:
        _count(said, metric.name, estimate, _end(metric, arms, estimate))
    for kind, found in (("peeked", peeked), ("alarmed", alarmed)):
        said.update((name, estimate, kind) for name, estimate in found)
    return said


def ended_tests(tests: int, seed: int, progress: bool = False) -> Counter[tuple[str, str, str]]:
    """What A/A tests say at their end, without looks on the way: much cheaper, so many more can be run."""
    said: Counter[tuple[str, str, str]] = Counter()
    generator = np.random.default_rng(seed)
    for begin in track(range(0, tests, _AT_ONCE), "A/A, ends", disable=not progress):
        ((arm, there, made),) = stream(generator, (min(_AT_ONCE, tests - begin), USERS), end_only=True)
        arms = arms_of_tests(made, arm, there, pairs())
        for metric, estimate in ROWS:
            _count(said, metric.name, estimate, compare_many(metric, arms, estimate, ALPHA))
    return said


def null_tests(
    tests: int, seed: int, progress: bool = False, *, looks_only: bool = False
) -> Counter[tuple[str, str, str]]:
    """Sum of :func:`one_test` over many tests."""
    said: Counter[tuple[str, str, str]] = Counter()
    for generator in track(np.random.default_rng(seed).spawn(tests), "A/A", disable=not progress):
        said.update(one_test(generator, looks_only=looks_only))
    return said


def people(generator: np.random.Generator, arm: np.ndarray, name: str, lift: float) -> dict[str, np.ndarray]:
    """Users whose mean outcome in the candidate arm is exactly ``1 + lift`` times that in the control arm.

    Args:
        generator: draws them.
        arm: whether a user is in the candidate arm; any shape.
        name: depth: messages grow; breadth: the chance to write at all grows.
        lift: as a share.
    """
    taste = generator.gamma(0.7, 1.0, arm.shape)
    past = generator.poisson(3 * taste)
    grown = np.where(arm, 1 + lift, 1.0)
    if name == "depth":
        messages = generator.poisson(3.5 * taste * grown)
    else:  # a chance of 0.8 at most leaves room to grow
        messages = (generator.random(arm.shape) < 0.8 * (1 - np.exp(-3.5 * taste)) * grown).astype(np.int64)
    return {
        "messages": messages,
        "active": (messages > 0).astype(np.int64),
        "pre_messages": past,
        "pre_active": (past > 0).astype(np.int64),
    }


def power_of(
    name: str, estimate: Estimate, lift: float, power: float, tests: int, seed: int, progress: bool = False
) -> tuple[int, float, float]:
    """Plan a test from a past, run it many times with exactly the planned lift, and count.

    Args:
        name: breadth or depth.
        estimate: raw, or with CUPED.
        lift: as a share.
        power: that is planned, at the level of one of two primary metrics, as ``flywheel ab plan`` does.
        tests: how many.
        seed: of everything.
        progress: show a bar.

    Returns:
        planned users; share of tests that found the effect; share of 95% intervals that hold the lift.
    """
    metric, level = METRICS[name], ALPHA / 2
    wanted = pairs([metric])
    generator = np.random.default_rng(seed)
    everyone = np.zeros((1, 200_000), dtype=bool)
    (past,) = sums_of_tests(people(generator, everyone, name, 0.0), ~everyone, wanted)
    users = users_needed(metric, past, estimate, lift_percent=100 * lift, alpha=level, power=power)
    assert users is not None
    positive = covered = 0
    size = max(1, 2_000_000 // users)
    starts = range(0, tests, size)
    for begin in track(starts, f"power {name} {estimate}", disable=not progress):
        arm = generator.random((min(size, tests - begin), users)) < 0.5
        found = people(generator, arm, name, lift)
        arms = arms_of_tests(found, arm, np.full_like(arm, True), wanted)
        ends = compare_many(metric, arms, estimate, ALPHA)
        positive += int(np.sum(ends.pvalue < level))
        covered += int(np.sum((ends.low <= lift) & (lift <= ends.high)))
    return users, positive / tests, covered / tests


def ratio_alarms(users: int, share: float, tests: int, seed: int) -> float:
    """Share of tests in which the sample-ratio check finds that the candidate got ``share`` instead of a half."""
    plan = make_plan()
    found = 0
    for candidates in np.random.default_rng(seed).binomial(users, share, tests):
        sizes = {"control": users - int(candidates), "candidate": int(candidates)}
        found += sample_ratio(sizes, plan) < SRM_PVALUE
    return found / tests


def _print(said: Mapping[tuple[str, str, str], int], console: Console) -> None:
    console.print(
        f"{'metric':28}{'estimate':10}{'false positives':>16}{'coverage':>10}{'peeking':>9}{'always valid':>14}"
    )
    for name, estimate in ((metric.name, estimate) for metric, estimate in ROWS):
        tests = said[name, estimate, "tests"]
        looks = (
            [f"{said.get((name, estimate, kind), 0) / tests:.2%}" for kind in ("peeked", "alarmed")]
            if name in LOOKED_AT
            else ["", ""]
        )
        console.print(
            f"{name:28}{estimate:10}{said[name, estimate, 'positive'] / tests:16.2%}"
            f"{said[name, estimate, 'covered'] / tests:10.2%}{looks[0]:>9}{looks[1]:>14}"
        )


PLANNED = (
    ("depth", 0.1),
    ("depth", 0.2),
    ("depth", 0.5),
    ("breadth", 0.05),
    ("breadth", 0.1),
    ("breadth", 0.2),
)


def _print_power(tests: int, seed: int, console: Console) -> None:
    off = 1.96 * np.sqrt(0.8 * 0.2 / tests)
    console.print(
        f"{'planned for':20}{'estimate':10}{'users':>8}{'planned':>9}{'power':>8}{'coverage':>10}   "
        f"{tests} tests a row: by chance alone ±{off:.1%}"
    )
    for name, lift in PLANNED:
        for estimate in ESTIMATES:
            users, power, covered = power_of(name, estimate, lift, 0.8, tests, seed, progress=True)
            console.print(
                f"{f'{name} {lift:+.0%}':20}{estimate:10}{users:8}{0.8:9.0%}{power:8.1%}{covered:10.2%}"
            )


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=20261102)
    parser.add_argument(
        "--power-only", action="store_true", help="only the power of planned tests; minutes, not more"
    )
    parser.add_argument(
        "--ends-only", action="store_true", help="only A/A tests at their end, without daily looks"
    )
    given = parser.parse_args()
    console, start = Console(highlight=False, width=200), time.perf_counter()
    if given.power_only or given.ends_only:
        if given.ends_only:
            _print(ended_tests(given.tests, given.seed, progress=True), console)
        if given.power_only:
            _print_power(given.tests, given.seed + 1, console)
        console.print(f"{time.perf_counter() - start:.0f} s")
        return
    said = null_tests(given.tests, given.seed, progress=True)
    low, high = (binom.ppf(q, given.tests, ALPHA) / given.tests for q in (0.025, 0.975))
    console.print(
        f"{given.tests} A/A tests of {USERS} users; by chance alone 95% of rows lie in {low:.1%} to {high:.1%}"
    )
    _print(said, console)
    _print_power(given.tests, given.seed + 1, console)
    for share in (0.5, 0.505):
        alarms = ratio_alarms(1_000_000, share, 1_000, given.seed + 2)
        console.print(
            f"sample ratio, 1,000,000 users, candidate {share:.1%} instead of 50%: found in {alarms:.1%}"
        )
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
