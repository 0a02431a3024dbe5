"""The short Markdown that an approver sees in Airflow: verdict, figures, and what they approve."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from flywheel_tasks.report.contents import Contents, most_different
from flywheel_tasks.report.figures import (
    MISSING,
    change,
    compared,
    estimate_note,
    get,
    is_estimate,
    percent,
    rl_gain,
    words,
)
from flywheel_tasks.report.reward_models import against_earlier

EXAMPLES = 3
BADGES = {"pass": "PASS", "warn": "PASS WITH WARNINGS", "block": "BLOCKED"}
_LONGEST = 400
# What a Markdown reader, a browser or a template engine could take for its own. Of the word characters that
# is only the underscore and "www"; a dash or a "1." is active at the start of a line.
_ACTIVE = re.compile(r"[^\w ,.;:%?!()=+'\"±–—’“”…/-]|^[^\w\s]|^\d+(?=[.)])|_|://|www", re.IGNORECASE)
_INVISIBLE = ("Cc", "Cf", "Co", "Cs")
_SOURCES = ("user", "internal", "all")
_PRODUCTION = (
    "instruction_following",
    "instruction_violation",
    "false_refusal",
    "templated",
    "wall_of_text",
    "cut_off",
    "at_limit",
    "emoji",
    "words",
)


def escape(text: str) -> str:
    """Text of users or models as one line of plain text to Markdown, HTML and template engines alike.

    Everything but letters, digits and plain punctuation becomes a numeric character reference. Invisible
    characters, which could change the order of what is shown, are removed.

    Args:
        text: any text; cut after 400 characters.
    """
    line = "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in _INVISIBLE)
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    return _ACTIVE.sub(lambda match: "".join(f"&#{ord(c)};" for c in match.group()), line)


def render_approval(contents: Contents) -> str:
    """The Markdown text.

    Args:
        contents: what the gate knows.
    """
    generation = escape(str(contents.generation["generation"]))
    parts = [f"# {BADGES[contents.outcome]}: generation {generation}", contents.lead()]
    if note := contents.simulation_note():
        parts.append(f"**Simulated.** {note}" if any(contents.simulated.values()) else note)
    parts += [_reasons(contents), _win_rates(contents.metrics), _production(contents)]
    if examples := _examples(contents):
        parts.append(examples)
    parts.append(_digests(contents))
    return "\n\n".join(parts) + "\n"


def _reasons(contents: Contents) -> str:
    marks = {"pass": "✓", "warn": "△", "block": "✗"}
    lines = [f"- {marks[r['outcome']]} {escape(r['reason'])}" for r in contents.verdict["reasons"]]
    return "## Reasons\n\n" + "\n".join(lines)


def _cell(node: Any, *, share: bool = True) -> str:
    if not is_estimate(node) or node["value"] is None:
        return MISSING
    value = percent(node["value"]) if share else f"{node['value']:.1f}"
    note = estimate_note(node, as_percent=share)
    return f"{value} ({note})" if note else value


def _win_rates(metrics: Mapping[str, Any]) -> str:
    lines = ["| candidate preferred | user | internal | all |", "|---|---|---|---|"]
    for judge in ("pointwise", "pairwise"):
        cells = [_cell(get(metrics, "evaluate", "win_rate", judge, source)) for source in _SOURCES]
        lines.append(f"| {judge} model | {' | '.join(cells)} |")
    all_pairs = _cell(get(metrics, "train_pointwise_rm", "heldout", "accuracy"))
    pointwise, pairwise = (
        _cell(get(metrics, f"train_{judge}_rm", "heldout", "by_set", "consensus", "accuracy"))
        for judge in ("pointwise", "pairwise")
    )
    note = (
        f"Share of replies{compared(metrics)}, with 95% interval. "
        f"Accuracy of these judges on held-out rankings of policies' replies (a coin: 50%): pointwise {pointwise}, "
        f"pairwise {pairwise}; of the pointwise model on all held-out pairs, rewrites too: {all_pairs}."
    )
    models = " ".join(map(escape, against_earlier(metrics)))
    earlier = f"Against the last launched generation's models: {models}" if models else ""
    sentences = " ".join(filter(None, [note, earlier, rl_gain(metrics)]))
    return "## Win rates\n\n" + "\n".join(lines) + "\n\n" + sentences


def _production(contents: Contents) -> str:
    metrics = contents.metrics
    lines = ["| replies | champion | candidate | change |", "|---|---|---|---|"]
    for name in _PRODUCTION:
        cells = [
            _cell(get(metrics, "evaluate", "production", name, side), share=name != "words")
            for side in ("champion", "candidate")
        ]
        rise, interval = change(get(metrics, "evaluate", "change", name), as_percent=name != "words")
        cells.append(f"{rise} ({interval})" if interval else rise)
        lines.append(f"| {words(name)} | {' | '.join(cells)} |")
    sentences = " ".join(contents.not_measured())
    return "\n\n".join(filter(None, ["## Production metrics", "\n".join(lines), sentences]))


def _examples(contents: Contents) -> str:
    rows = most_different(contents.replies, EXAMPLES)
    if not rows:
        return ""
    blocks = [
        f"**{escape(row['card_name'])}** was told: {escape(row['history'][-1]['content'])}\n\n"
        f"- champion: {escape(row['champion_reply'])}\n- candidate: {escape(row['candidate_reply'])}"
        for row in rows
    ]
    return "## Where the replies differ most\n\n" + "\n\n".join(blocks)


def _digests(contents: Contents) -> str:
    champion = contents.generation.get("champion") or {}
    lines = [
        f"- model: `{contents.verdict['model_digest']}`",
        f"- verdict: `{contents.verdict_digest}`",
        f"- champion: {escape(str(champion.get('model')))}, `{champion.get('digest')}`",
        f"- logs: `{contents.generation.get('logs_digest')}`",
    ]
    return "## What this approves\n\n" + "\n".join(lines)
