"""Are the figures of an A/B analysis what they claim to be? Simulated tests, thousands of them, through the real code.

A/A: 2,000 tests without an effect, each of 7 days, users entering on the first four. Per metric, raw and with CUPED:
the share of tests that are "significant" at 5% (false positives) and of intervals that hold the truth; the share that
is "significant" on any of 7 daily looks, by the fixed-horizon p-value (the peer: what peeking costs) and by the
always-valid one. Then: the power at the size that ``flywheel ab plan`` computes; the coverage under a true effect; the
sample-ratio check.

    python -m benchmarks.experiments_calibration --tests 2000
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.stats import binom

from flywheel_tasks.online.checks import SRM_PVALUE, sample_ratio
from flywheel_tasks.online.design import users_needed
from flywheel_tasks.online.exposed import COUNTED, Sums
from flywheel_tasks.online.metrics import ESTIMATES, METRICS, Estimate, Metric, always_valid, compare
from tests.online.people import columns, make_plan, sums_of

ALPHA, DAYS, USERS = 0.05, 7, 2_000
LOOKED_AT = ("breadth", "depth", "thumb_down_per_reply")
RATES = dict(zip(COUNTED, (0.12, 0.06, 0.05, 0.08, 0.02, 0.02), strict=True))


def stream(
    generator: np.random.Generator, users: int, lift: float = 0.0, *, end_only: bool = False
) -> Iterator[tuple[dict[str, Sums], dict[str, np.ndarray]]]:
    """A test as it stands at the end of each day: sums by arm of those who have entered, and their columns.

    Activity differs between users (gamma), is the same in kind before the test (the past of CUPED), and is cumulative.

    Args:
        generator: draws it.
        users: of both arms, in the end.
        lift: of the candidate's messages, as a share.
        end_only: only as it stands at the end of the last day.
    """
    arm = generator.random(users) < 0.5
    entry = generator.integers(0, 4, users)
    taste = generator.gamma(0.7, 1.0, users)
    past = generator.poisson(3 * taste)
    before = {f"pre_{name}": generator.binomial(past, share) for name, share in RATES.items()}
    daily: dict[str, np.ndarray] = {}
    total = {name: np.zeros(users, dtype=np.int64) for name in ("replies", "milliseconds", *COUNTED)}
    for day in range(DAYS):
        there = entry <= day
        daily[f"messages_{day}"] = generator.poisson(0.5 * taste * np.where(arm, 1 + lift, 1.0)) * there
        replies = daily[f"messages_{day}"] + generator.binomial(daily[f"messages_{day}"], 0.1)
        total["replies"] = total["replies"] + replies
        total["milliseconds"] = total["milliseconds"] + generator.poisson(900, users) * replies
        for name, share in RATES.items():
            total[name] = total[name] + generator.binomial(replies, share)
        if end_only and day < DAYS - 1:
            continue
        past_columns = {"pre_messages": past, "pre_replies": past, **before}
        made = columns(users, DAYS, **daily, **total, timed_replies=total["replies"], **past_columns)
        yield {"control": sums_of(made, ~arm & there), "candidate": sums_of(made, arm & there)}, made


def one_test(generator: np.random.Generator, users: int = USERS) -> Counter[tuple[str, str, str]]:
    """What one A/A test says: counts of ``(metric, estimate, what)``."""
    said: Counter[tuple[str, str, str]] = Counter()
    peeked, alarmed = set(), set()
    for arms, _ in stream(generator, users):
        for name in LOOKED_AT:
            for estimate in ESTIMATES:
                view = always_valid(METRICS[name], arms, estimate, users, ALPHA)
                if view["pvalue"] < ALPHA:
                    alarmed.add((name, estimate))
                if abs(view["z"]) > 1.959964:
                    peeked.add((name, estimate))
    for name, metric in METRICS.items():
        for estimate in _estimates(metric):
            result = compare(metric, arms, estimate, ALPHA)
            said[name, estimate, "tests"] += 1
            said[name, estimate, "positive"] += int(result.pvalue < ALPHA)
            held = result.rel_effect_size_ci_lower <= 0 <= result.rel_effect_size_ci_upper
            said[name, estimate, "covered"] += int(held)
    for kind, found in (("peeked", peeked), ("alarmed", alarmed)):
        said.update((name, estimate, kind) for name, estimate in found)
    return said


def _estimates(metric: Metric) -> tuple[Estimate, ...]:
    return ESTIMATES if metric.covariate else ESTIMATES[:1]


def null_tests(tests: int, seed: int, progress: bool = False) -> Counter[tuple[str, str, str]]:
    """Sum of :func:`one_test` over many tests."""
    said: Counter[tuple[str, str, str]] = Counter()
    for generator in track(np.random.default_rng(seed).spawn(tests), "A/A", disable=not progress):
        said.update(one_test(generator))
    return said


def power_of(
    name: str, estimate: Estimate, lift: float, power: float, tests: int, seed: int, progress: bool = False
) -> tuple[int, float, float]:
    """Plan a test from a past, run it many times with the effect, and count.

    Returns:
        planned users; share of tests that found the effect; share of intervals that hold the true lift (depth: exactly
        ``lift``; other metrics: NaN, their true lift has no closed form).
    """
    generator = np.random.default_rng(seed)
    *_, (_, found) = stream(generator, 200_000, end_only=True)
    past = sums_of(found, np.ones(200_000, dtype=bool))
    users = users_needed(METRICS[name], past, estimate, lift_percent=100 * lift, alpha=ALPHA, power=power)
    assert users is not None
    positive = covered = 0
    for child in track(generator.spawn(tests), f"power {name} {estimate}", disable=not progress):
        *_, (arms, _) = stream(child, users, lift, end_only=True)
        result = compare(METRICS[name], arms, estimate, ALPHA)
        positive += result.pvalue < ALPHA
        covered += result.rel_effect_size_ci_lower <= lift <= result.rel_effect_size_ci_upper
    return users, positive / tests, covered / tests if name == "depth" else float("nan")


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
    for name, metric in METRICS.items():
        for estimate in _estimates(metric):
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


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=20261102)
    given = parser.parse_args()
    console, start = Console(highlight=False, width=200), time.perf_counter()
    said = null_tests(given.tests, given.seed, progress=True)
    low, high = (binom.ppf(q, given.tests, ALPHA) / given.tests for q in (0.025, 0.975))
    console.print(
        f"{given.tests} A/A tests of {USERS} users; by chance alone 95% of rows lie in {low:.1%} to {high:.1%}"
    )
    _print(said, console)
    console.print(
        f"{'planned for':28}{'estimate':10}{'users':>8}{'planned':>9}{'power':>8}{'coverage of the true lift':>27}"
    )
    for name, lift in (("depth", 0.2), ("breadth", 0.08)):
        for estimate in ESTIMATES:
            users, power, covered = power_of(name, estimate, lift, 0.8, given.tests, given.seed + 1, True)
            console.print(
                f"{f'{name} {lift:+.0%}':28}{estimate:10}{users:8}{0.8:9.0%}{power:8.1%}"
                + (f"{covered:10.2%}" if name == "depth" else "")
            )
    for share in (0.5, 0.505):
        alarms = ratio_alarms(1_000_000, share, 1_000, given.seed + 2)
        console.print(
            f"sample ratio, 1,000,000 users, candidate {share:.1%} instead of 50%: found in {alarms:.1%}"
        )
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
