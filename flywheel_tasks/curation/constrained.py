"""The constrained sample of curation: caps, then as many prompts of each stratum as the marginals ask for."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel_tasks.curation.allocation import InfeasibleError, Marginal, allocate
from flywheel_tasks.curation.dimensions import merge_rare
from flywheel_tasks.curation.sampling import draw_order, largest_remainder
from flywheel_tasks.curation.tables import SAMPLE, CurationError
from flywheel_tasks.curation.traffic import Traffic
from flywheel_tasks.settings import Curate, Sample

_MOST_STRATA = 20_000  # beyond, rare values are merged further
_ASKED = 20.0  # weight of a target of the settings, beside 1 for the mix of the raw traffic
_MOST_REPORTED = 40  # values of a dimension in the metrics


@dataclass(frozen=True)
class Achieved:
    """One value of one dimension: what was wanted and what came out, in prompts.

    Attributes:
        dimension: its name.
        value: of the dimension.
        raw: prompts in the raw traffic.
        available: prompts that could be drawn.
        target: prompts wanted; None where the dimension has bounds only.
        achieved: prompts drawn.
    """

    dimension: str
    value: str
    raw: int
    available: int
    target: int | None
    achieved: int


def cap(traffic: Traffic, owners: Sequence[str], most: int, reason: str, whose: str, seed: int) -> None:
    """Take out what one owner has beyond ``most``; which stay is drawn.

    Args:
        traffic: is changed.
        owners: of each prompt.
        most: prompts of one owner.
        reason: why they are out.
        whose: for the detail, such as ``user``.
        seed: of the draw.
    """
    by_owner: dict[str, list[int]] = defaultdict(list)
    for row in traffic.alive.tolist():
        by_owner[owners[row]].append(row)
    names = traffic.ids["prompt_id"]
    for rows in by_owner.values():
        if len(rows) > most:
            drawn = sorted(rows, key=lambda row: draw_order(seed, f"{whose} cap", names[row]))
            traffic.drop(drawn[most:], reason, f"more than {most} prompts of the {whose}")


def _about(part: Mapping[Any, Mapping[str, float]], name: str) -> Mapping[str, float]:
    """What one part of the settings says about a dimension."""
    return part.get(name, {})


def _targets(settings: Sample, name: str, raw: Counter[str], total: int) -> dict[str, int]:
    """Whole prompts of each value that add up to the total."""
    given = {value: float(share) for value, share in _about(settings.targets, name).items()}
    if given:
        rest = {value: count for value, count in raw.items() if value not in given}
        left = max(0.0, 1.0 - sum(given.values()))
        if not rest and left > 1e-9:
            raise CurationError(
                f"curate.sample.targets.{name}: the shares add up to {sum(given.values()):g}, and there is no "
                "other value for the rest"
            )
        given |= {value: left * count / sum(rest.values()) for value, count in rest.items()}
        return largest_remainder(given, total)
    return largest_remainder({value: float(count) for value, count in raw.items()}, total)


def _dimensions(settings: Sample) -> list[str]:
    """Names of all dimensions that anything is said about, sorted."""
    return sorted({*settings.match, *settings.targets, *settings.at_least, *settings.at_most})


def _labels(traffic: Traffic, settings: Sample, names: Sequence[str]) -> dict[str, list[str]]:
    """Values by dimension, merged until there are few enough strata."""
    most = settings.max_values
    while True:
        labels = {}
        for name in names:
            said = (_about(part, name) for part in (settings.targets, settings.at_least, settings.at_most))
            named = {value for values in said for value in values}
            labels[name] = merge_rare(traffic.dimensions[name], most, named)
        if most <= 2 or len(set(zip(*labels.values(), strict=True))) <= _MOST_STRATA:
            return labels
        most = max(2, most // 2)


def _marginals(
    settings: Sample,
    raw: dict[str, Counter[str]],
    codes: dict[str, np.ndarray],
    values: dict[str, list[str]],
    total: int,
) -> list[Marginal]:
    found = []
    for name in raw:
        aimed = name in settings.match or name in settings.targets
        targets = _targets(settings, name, raw[name], total) if aimed else {}
        least, most = _about(settings.at_least, name), _about(settings.at_most, name)
        for value in sorted({*raw[name], *targets, *least, *most}):
            place = values[name].index(value) if value in values[name] else -1
            target, low = targets.get(value), int(least.get(value, 0))
            high = int(most[value]) if value in most else None
            if target is not None and settings.max_deviation is not None:
                room = settings.max_deviation * total
                low = max(low, ceil(target - room))
                high = min(floor(target + room), total if high is None else high)
            if target is not None or low or high is not None:
                weight = _ASKED if name in settings.targets else 1.0
                found.append(Marginal(name, value, codes[name] == place, target, low, high, weight))
    return found


def draw(traffic: Traffic, settings: Curate, seed: int) -> list[Achieved]:
    """Take out all but the sample: ``max_prompts`` of those that are in, or all if there are fewer.

    Args:
        traffic: is changed.
        settings: caps, targets and bounds.
        seed: of the draw within a stratum.

    Raises:
        CurationError: bounds cannot be met; each that is short is named.
    """
    cap(traffic, traffic.ids["user_id"], settings.max_prompts_per_user, "user_cap", "user", seed)
    if settings.max_prompts_per_character is not None:
        owners = traffic.dimensions["character"]
        cap(traffic, owners, settings.max_prompts_per_character, "character_cap", "character", seed)
    alive, names = traffic.alive, _dimensions(settings.sample)
    total = min(settings.max_prompts, len(alive))
    labels = _labels(traffic, settings.sample, names)
    keys = list(zip(*(labels[name] for name in names), strict=True)) if names else [()] * len(traffic)
    by_stratum: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in alive.tolist():
        by_stratum[keys[row]].append(row)
    strata = sorted(by_stratum)
    before = Counter(keys)
    raw = {name: Counter(value for value in labels[name] if value != "") for name in names}
    values = {name: sorted({key[place] for key in strata}) for place, name in enumerate(names)}
    codes = {
        name: np.array([values[name].index(key[place]) for key in strata], dtype=np.int64)
        for place, name in enumerate(names)
    }
    marginals = _marginals(settings.sample, raw, codes, values, total)
    available = np.array([len(by_stratum[key]) for key in strata], dtype=np.int64)
    try:
        counts = allocate(available, np.array([before[key] for key in strata]), marginals, total)
    except InfeasibleError as error:
        raise CurationError(f"curate.sample: {error}; after filters, duplicates and caps") from error
    ids = traffic.ids["prompt_id"]
    for key, count in zip(strata, counts.tolist(), strict=True):
        drawn = sorted(by_stratum[key], key=lambda row: draw_order(seed, "max_prompts", ids[row]))
        traffic.drop(drawn[count:], "sampled_out", f"not among the {total} of the sample")
    return [
        Achieved(
            marginal.dimension,
            marginal.value,
            raw[marginal.dimension][marginal.value],
            int(available[marginal.strata].sum()),
            None if marginal.target is None else int(marginal.target),
            int(counts[marginal.strata].sum()),
        )
        for marginal in marginals
    ]


def sample_table(achieved: Sequence[Achieved]) -> pa.Table:
    """The achieved-against-target table: one row a value."""
    return pa.table({name: [getattr(row, name) for row in achieved] for name in SAMPLE.names}, schema=SAMPLE)


def sample_metrics(achieved: Sequence[Achieved], total: int) -> dict[str, Any]:
    """Target and achieved share of each value (the commonest of each dimension), and the largest difference."""
    by_dimension: dict[str, list[Achieved]] = defaultdict(list)
    for row in achieved:
        by_dimension[row.dimension].append(row)
    found: dict[str, Any] = {}
    for name, rows in by_dimension.items():
        off = [abs(row.achieved - row.target) / total for row in rows if row.target is not None]
        common = sorted(rows, key=lambda row: (-row.raw, row.value))[:_MOST_REPORTED]
        found[name] = {
            "largest_deviation": max(off, default=None),
            "shares": {
                row.value: {
                    "target": None if row.target is None else row.target / total,
                    "achieved": row.achieved / total,
                }
                for row in sorted(common, key=lambda row: row.value)
            },
        }
    return found
