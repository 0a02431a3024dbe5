"""Metrics as rows that a page can show: numbers in words, intervals as bars, curves as SVG points."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel_tasks.report.contents import Contents, Curve

_REMOVED = re.compile(
    r"removed|quarantin|duplicat|dropped|discarded|rejected|unknown|filtered|reasons|skipped"
)
MISSING = "not measured"
_SPELLED = {"heldout": "held-out", "auc": "AUC", "sft": "SFT", "dpo": "DPO", "rl": "RL", "rm": "reward model"}


@dataclass(frozen=True)
class Figure:
    """One number of a stage.

    Attributes:
        label: its path in the metrics file, in words.
        text: the number.
        note: interval and count, maybe empty.
    """

    label: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """An estimate between 0 and 1 as a bar with its interval (positions in percent).

    Attributes:
        label: what it is.
        text: the value.
        note: interval and count.
        value: position, or None where nothing was measured.
        low: of the interval.
        high: of the interval.
    """

    label: str
    text: str
    note: str
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A curve ready to draw in a box of 100 by 100.

    Attributes:
        title: curve and column.
        points: ``x,y`` pairs of an SVG polyline.
        low: least value, as text.
        high: greatest value, as text.
        last: last value, as text.
        first: first step, as text.
        steps: last step, as text.
    """

    title: str
    points: str
    low: str
    high: str
    last: str
    first: str
    steps: str


def words(key: str) -> str:
    """A metrics key in words."""
    return " ".join(_SPELLED.get(part, part) for part in key.split("_"))


def is_estimate(node: Any) -> bool:
    """Whether a metric is a value with its interval."""
    return isinstance(node, Mapping) and {"value", "low", "high"} <= set(node)


def show(value: Any) -> str:
    """A number for people: whole numbers with thousands, others in three digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share in percent, one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}%"


def estimate_note(node: Mapping[str, Any], *, as_percent: bool) -> str:
    """Interval and count of an estimate, such as ``41.2–66.0, n = 30``."""
    scale = 100 if as_percent else 1
    parts = []
    if node.get("low") is not None and node.get("high") is not None:
        form = ".1f" if as_percent else ".3g"
        parts.append(f"{scale * node['low']:{form}}–{scale * node['high']:{form}}")
    if node.get("n") is not None:
        parts.append(f"n = {show(node['n'])}")
    return ", ".join(parts)


def reason(node: Any) -> str:
    """Why an estimate has no value, or no interval, or what of it is assumed; empty where it does not say."""
    return str(node.get("reason") or "") if isinstance(node, Mapping) else ""


def change(node: Any, *, as_percent: bool) -> tuple[str, str]:
    """How much a metric rose, with its sign, and the interval: ``("+3.2 points", "-1.0 to +7.4")``."""
    if not is_estimate(node) or node["value"] is None:
        return MISSING, reason(node)
    scale, unit = (100, " points") if as_percent else (1, "")
    value, low, high = (None if node[key] is None else scale * node[key] for key in ("value", "low", "high"))
    note = reason(node) if low is None or high is None else f"{low:+.1f} to {high:+.1f}"
    return f"{value:+.1f}{unit}", note


def bar(label: str, node: Any) -> Bar:
    """A bar of an estimate of a share."""
    if not is_estimate(node) or node["value"] is None:
        return Bar(label, MISSING, reason(node), None, 0, 0)
    value = float(node["value"])
    low, high = (node[key] if node[key] is not None else value for key in ("low", "high"))
    position = [100 * min(1.0, max(0.0, float(x))) for x in (value, low, high)]
    return Bar(label, percent(value), estimate_note(node, as_percent=True), *position)


def flatten(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and leaves (numbers, texts, estimates) of nested metrics, in the order of the keys."""
    for key, item in node.items():
        if isinstance(item, Mapping) and not is_estimate(item):
            yield from flatten(item, (*path, str(key)))
        else:
            yield (*path, str(key)), item


def figures(metrics: Any, *, removed: bool | None = None) -> list[Figure]:
    """The numbers of one stage.

    Args:
        metrics: of the stage.
        removed: only what was removed (True), only the rest (False), or all (None).
    """
    if not isinstance(metrics, Mapping):
        return []
    rows = []
    for path, leaf in flatten(metrics):
        if removed is not None and removed != bool(_REMOVED.search(".".join(path))):
            continue
        if path[:1] == ("sample",) and "shares" in path:  # a table of its own: data/curated/sample.parquet
            continue
        label = " › ".join(words(part) for part in path)
        if is_estimate(leaf):
            rows.append(Figure(label, show(leaf["value"]), estimate_note(leaf, as_percent=False)))
        elif not isinstance(leaf, list):
            rows.append(Figure(label, show(leaf)))
    return rows


def accuracy_bars(metrics: Mapping[str, Any]) -> list[Bar]:
    """The accuracies and AUCs of the reward and signal models; sets of labels and earlier models are shown apart."""
    bars = []
    for stage, title in (
        ("train_pointwise_rm", "Pointwise"),
        ("train_pairwise_rm", "Pairwise"),
        ("train_signal_models", "Signal"),
    ):
        for path, leaf in flatten(metrics.get(stage) or {}):
            if "by_set" in path or path[0] in ("earlier", "card_reading"):
                continue
            if is_estimate(leaf) and re.search(r"accuracy|auc", path[-1]):
                name = " ".join(words(part) for part in path if part != "signals")
                bars.append(bar(f"{title}: {name}", leaf))
    return bars


def rl_gain(metrics: Mapping[str, Any]) -> str:
    """Sentences on the mean held-out reward before and after RL; empty where it was not measured."""
    heldout = get(metrics, "rl", "heldout")
    gain = get(heldout, "reward_gain")
    if not is_estimate(gain) or gain["value"] is None:
        return ""
    before, after = (show(get(heldout, key)) for key in ("reward_before", "reward_after"))
    checkpoint, trained = get(metrics, "rl", "checkpoint"), get(metrics, "rl", "train")
    interval = "no interval," if gain["low"] is None else "95% interval"
    return (
        f"Mean reward on held-out prompts: {before} before RL, {after} after; gain {show(gain['value'])} "
        f"({interval} {estimate_note(gain, as_percent=False)}), flattered a little: the checkpoint was chosen on these "
        f"prompts. {_handed_over(checkpoint, trained)}"
        f"{_last_check(get(heldout, 'reward_gain_last'), checkpoint)}{_judge_stop(get(metrics, 'rl', 'judge_stop'))}"
    ).strip()


def _last_check(gain: Any, checkpoint: Any) -> str:
    """What training reached where an earlier checkpoint was handed over."""
    if not is_estimate(gain) or gain["value"] is None or checkpoint["step"] == checkpoint["last_step"]:
        return ""
    return (
        f" By the last check it had gained {show(gain['value'])} ({estimate_note(gain, as_percent=False)})."
    )


def _judge_stop(node: Any) -> str:
    """What the judge could have seen of the run."""
    if not isinstance(node, Mapping):
        return ""
    read = f" The pairwise judge read replies to {node['prompts']} prompts of {node['users']} users"
    if node["noticed_fall"] is None:
        return f"{read}: whether it fell cannot be told ({node['reason']})."
    return f"{read}: a fall of its mean by {show(node['noticed_fall'])} would be seen in half of all cases."


def _handed_over(checkpoint: Any, trained: Any) -> str:
    """Which of the run's checkpoints became the candidate, and why."""
    if not isinstance(checkpoint, Mapping):
        return ""
    stopped = ""
    if checkpoint["stopped_early"]:
        reason = get(trained, "drift", "stopped") or "reward rose while the pairwise judge fell"
        stopped = f" The run was stopped: {reason}."
    # A check at which the run was stopped, or that passed a limit, may not: it can be nearer.
    why = f"is nearest to the target of {checkpoint['target_win_rate']:.0%} among the checks that may be handed over."
    if checkpoint.get("hand_over", "nearest") != "nearest":
        why = f"was not asked for: rl.hand_over is {checkpoint['hand_over']}."
    rate = checkpoint.get("expected_win_rate", checkpoint["win_rate"])
    share = checkpoint.get("start_share", 1.0)
    drawn_back = (
        f"The policy won too much before RL, which started at {share:.1%} of the way from the champion to it. "
        if share < 1.0
        else ""
    )
    steps = (
        get(trained, "steps") or checkpoint["last_step"]
    )  # a run stopped between checks did more than the last
    return (
        f"{drawn_back}Of {steps} steps, the checkpoint after step {checkpoint['step']} was handed "
        f"over: its expected win rate over the champion on those prompts, {rate:.1%}, {why}{stopped}"
    )


def charts(curves: Sequence[Curve]) -> list[Chart]:
    """One chart for the loss, and one for the reward where there is one, of every training run."""
    drawn = []
    for curve in curves:
        for column in ("loss", "reward"):
            pairs = [
                (step, value)
                for step, value in zip(curve.steps, curve.series.get(column, []), strict=False)
                if value is not None
            ]
            if len(pairs) >= 2:
                drawn.append(_chart(f"{words(curve.name)}: {column}", pairs))
    return drawn


def _chart(title: str, pairs: Sequence[tuple[float, float]]) -> Chart:
    steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    low, high = min(values), max(values)
    width, height = (steps[-1] - steps[0]) or 1.0, (high - low) or 1.0
    points = " ".join(
        f"{100 * (step - steps[0]) / width:.2f},{97 - 94 * (value - low) / height:.2f}"
        for step, value in pairs
    )
    return Chart(title, points, show(low), show(high), show(values[-1]), show(steps[0]), show(steps[-1]))


def compared(metrics: Mapping[str, Any]) -> str:
    """How many prompts of how many users the win rates are from, such as `` (60 prompts of 9 users)``; maybe empty.

    What an estimate counts are replies: a prompt has as many as ``evaluate.samples``.
    """
    prompts = get(metrics, "evaluate", "prompts", "all")
    users = get(metrics, "evaluate", "win_rate", "pointwise", "all", "clusters")
    return f" ({show(prompts)} prompts of {show(users)} users)" if prompts and users else ""


def win_rate_bars(contents: Contents) -> dict[str, list[Bar]]:
    """Win rates by judge: user, internal, all."""
    rates = get(contents.metrics, "evaluate", "win_rate")
    return {
        judge: [bar(source, get(rates, judge, source)) for source in ("user", "internal", "all")]
        for judge in ("pointwise", "pairwise")
    }


def get(node: Any, *path: str) -> Any:
    """What is at a path of nested metrics; None where nothing is."""
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
