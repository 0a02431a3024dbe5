"""The generation report: one HTML file that needs nothing else, for the person who approves."""

import re
from typing import Any

from markupsafe import Markup, escape

from flywheel_tasks.report import figures
from flywheel_tasks.report.approval import BADGES
from flywheel_tasks.report.contents import Contents, most_different
from flywheel_tasks.report.reward_models import (
    against_earlier,
    card_readers,
    learned_from,
    one_feature_judges,
    quality_rows,
)
from flywheel_tasks.report.styles import asked_for, generation_trends, style_table, style_trends
from flywheel_tasks.report.template import render_file

EXAMPLES = 10
DATA_STAGES = (
    ("ingest", "Ingest"),
    ("validate", "Validate"),
    ("assemble", "Assemble"),
    ("curate", "Curate"),
    ("split", "Split"),
    ("annotate", "Annotate"),
)
MODEL_STAGES = (
    ("train_pointwise_rm", "Pointwise reward model"),
    ("train_pairwise_rm", "Pairwise reward model"),
    ("train_signal_models", "Signal models"),
    ("rejection_sample", "Rejection sampling"),
    ("sft", "SFT"),
    ("dpo", "DPO"),
    ("rl", "RL"),
)
_COUNTED = {"words", "tokens"}
_DETECTORS = {"model": "the trained detector", "rules": "rules alone"}


def render_page(contents: Contents) -> str:
    """The report as HTML; every text of users and models is escaped.

    Args:
        contents: what the gate knows.
    """
    evaluate = contents.metrics.get("evaluate") or {}
    values = {
        "contents": contents,
        "badge": BADGES[contents.outcome],
        "note": contents.simulation_note(),
        "win_rates": figures.win_rate_bars(contents),
        "compared": figures.compared(contents.metrics),
        "gap": (evaluate.get("divergence") or {}).get("pointwise"),
        "rl_gain": figures.rl_gain(contents.metrics),
        "accuracy": figures.accuracy_bars(contents.metrics),
        "quality": quality_rows(contents.metrics),
        "learned_from": [
            *learned_from(contents.metrics),
            *one_feature_judges(contents.metrics),
            *card_readers(contents.metrics),
        ],
        "against_earlier": against_earlier(contents.metrics),
        "judge": None if evaluate.get("judge") in (None, "none") else evaluate["judge"],
        "detector": _DETECTORS.get(
            figures.get(evaluate, "refusal_detector", "by"), "a detector that is not recorded"
        ),
        "production": _production(evaluate.get("production") or {}, evaluate.get("change") or {}),
        "instructions": evaluate.get("instructions"),
        "styles": style_table(contents.metrics),
        "asked_for": asked_for(contents.metrics),
        "absent": figures.get(contents.metrics, "style", "absent") or {},
        "trends": style_trends(contents.metrics),
        "generations": generation_trends(contents.generation, contents.metrics),
        "went_in": _sections(contents, DATA_STAGES, removed=False),
        "removed": _sections(contents, DATA_STAGES, removed=True),
        "models": _sections(contents, MODEL_STAGES, removed=None),
        "charts": figures.charts(contents.curves),
        "examples": most_different(contents.replies, EXAMPLES),
        "show": figures.show,
        "words": figures.words,
        "breakable": _breakable,
    }
    return render_file("flywheel_tasks.report", "report.html", values, css="report.css")


def _breakable(text: str) -> Markup:
    """Escaped text whose metric names may break after a dot or an underscore on a narrow screen."""
    return Markup(re.sub(r"([._])(?=[a-z])", r"\1<wbr>", str(escape(text))))  # noqa: S704 - escaped first


def _sections(
    contents: Contents, stages: tuple[tuple[str, str], ...], *, removed: bool | None
) -> list[tuple[str, list[figures.Figure]]]:
    rows = [(title, figures.figures(contents.metrics.get(stage), removed=removed)) for stage, title in stages]
    return [(title, found) for title, found in rows if found]


def _production(
    metrics: dict[str, dict[str, dict[str, float | None]]], changes: dict[str, Any]
) -> list[dict[str, str]]:
    rows = []
    for name, sides in metrics.items():
        share = name not in _COUNTED
        row = {"name": figures.words(name)}
        for side in ("champion", "candidate"):
            value = sides[side]["value"]
            row[side] = figures.percent(value) if share else figures.show(value)
            note = figures.estimate_note(sides[side], as_percent=share) if value is not None else ""
            row[f"{side}_note"] = ", ".join(filter(None, [note, figures.reason(sides[side])]))
        row["change"], row["change_note"] = figures.change(changes.get(name), as_percent=share)
        rows.append(row)
    return rows
