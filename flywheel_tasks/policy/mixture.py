"""The mixture of supervised fine-tuning: rows of every source in exact shares, and the books of it.

The paper's mixture (section on SFT): rejection-sampled internal and user data, safety, tool calls, ad-hoc sets
for failures seen, and the base model's own post-training data, which keeps general ability. Annotators'
rewrites are a source of their own here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from flywheel_tasks.curation.sampling import draw_order, largest_remainder
from flywheel_tasks.policy.prompts import PromptError
from flywheel_tasks.policy.sft_data import Example
from flywheel_tasks.settings import TRAFFIC

Item = TypeVar("Item")


def planned_rows(available: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """Rows of each source: the traffic's rows fill their part once, the other sources are measured by it.

    Args:
        available: rows of each source.
        shares: of each source, adding up to 1; a source without rows must have a share of 0.

    Returns:
        whole numbers in proportion to the shares (largest remainder), for sources with a share.
    """
    traffic = sum(shares.get(name, 0.0) for name in TRAFFIC)
    distinct = sum(available.get(name, 0) for name in TRAFFIC if shares.get(name, 0.0) > 0)
    total = round(distinct / traffic) if traffic > 0 else sum(available[name] for name in shares)
    return largest_remainder(
        {name: share for name, share in sorted(shares.items()) if share > 0}, max(1, total)
    )


def take(rows: Sequence[Item], count: int, key: Sequence[str], seed: int, purpose: str) -> list[Item]:
    """``count`` rows in a drawn order; all rows are used before any is used again.

    Args:
        rows: of a source.
        count: wanted.
        key: stable id of each row.
        seed: of the draw.
        purpose: keeps draws of one seed apart.
    """
    order = sorted(range(len(rows)), key=lambda index: draw_order(seed, purpose, key[index]))
    return [rows[order[place % len(order)]] for place in range(count)]


def effective_shares(
    available: Mapping[str, int], shares: Mapping[str, float], on_missing: str
) -> tuple[dict[str, float], list[str]]:
    """Shares of the sources that have rows, and the names of those that have a share but no rows.

    Raises:
        PromptError: a source is empty and ``on_missing`` is ``error``, or all are.
    """
    missing = sorted(name for name, share in shares.items() if share > 0 and not available.get(name))
    if missing and on_missing == "error":
        raise PromptError(f"sft.mixture: no rows for {', '.join(missing)}, which have a share")
    left = {name: share for name, share in shares.items() if share > 0 and name not in missing}
    if not left:
        raise PromptError("sft.mixture: no source has any row")
    whole = sum(left.values())
    return {name: share / whole for name, share in left.items()}, missing


def mix(
    sources: Mapping[str, Sequence[Example]],
    shares: Mapping[str, float],
    *,
    max_repeats: int,
    on_missing: str,
    seed: int,
) -> tuple[list[Example], dict[str, Any]]:
    """Draw the mixture.

    Args:
        sources: rows by source.
        shares: by source, adding up to 1.
        max_repeats: how often one row may be used.
        on_missing: what to do where a source with a share has no rows: ``error``, or ``redistribute`` its share in
            proportion to the others'.
        seed: of the draw.

    Returns:
        the rows, sorted by source and prompt, and the account: for each source ``available``, ``used``,
        ``target`` and ``share``; and ``missing``.

    Raises:
        PromptError: a source has too few rows for its share.
    """
    available = {name: len(rows) for name, rows in sources.items()}
    wanted, missing = effective_shares(available, shares, on_missing)
    plan = planned_rows(available, wanted)
    for name, count in plan.items():
        if count > max_repeats * available[name]:
            raise PromptError(
                f"sft.mixture: {name} needs {count} rows for its share of {wanted[name]:.0%}, and has "
                f"{available[name]}, each used at most {max_repeats} times"
            )
    chosen: list[Example] = []
    for name, count in plan.items():
        rows = sources[name]
        chosen += take(
            rows, count, [row.prompt.prompt_id + row.reply for row in rows], seed, f"mixture {name}"
        )
    account = {
        name: {
            "available": available.get(name, 0),
            "used": plan.get(name, 0),
            "target": shares[name],
            "share": plan.get(name, 0) / len(chosen),
        }
        for name in sorted(shares)
    }
    chosen.sort(key=lambda row: (row.mix, row.prompt.prompt_id, row.reply))
    return chosen, {"sources": account, "missing": missing}
