"""A campaign's page: one HTML file in the look of the generation report, and the JSON and Markdown beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel_tasks.campaign import text
from flywheel_tasks.campaign.clock import words_of
from flywheel_tasks.campaign.panels import GROUPS
from flywheel_tasks.report.template import render_file
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.documents import write_json


@dataclass(frozen=True)
class Line:
    """A figure after each launch, ready to draw in a box of 100 by 100.

    Attributes:
        title: what it is.
        points: of the polyline.
        band: of the polygon between the ends of the intervals.
        first: value before the first launch, as text.
        last: value after the last.
    """

    title: str
    points: str
    band: str
    first: str
    last: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table, its interval and its remark apart, so that they can stand below.

    Attributes:
        text: value or words.
        interval: in brackets, or empty.
        mark: a remark such as "counterfactual", or empty.
    """

    text: str
    interval: str = ""
    mark: str = ""


_WIDE = 2 + 2 * len(GROUPS)  # columns of the table of champions that go into one on the page
_INTERVAL = re.compile(r"(?P<text>.+?) (?P<interval>\([^()]+ to [^()]+\))(?: \((?P<mark>[^()]+)\))?")
_REMARK = re.compile(r"(?P<text>g\d+) \((?P<mark>[^()]+)\)")


def cell(written: str) -> Cell:
    """A cell of a text table, taken apart."""
    found = _INTERVAL.fullmatch(written) or _REMARK.fullmatch(written)
    return Cell(written) if found is None else Cell(**{k: v or "" for k, v in found.groupdict().items()})


def _cells(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], list[list[Cell]]]:
    return headings, [[cell(written) for written in row] for row in rows]


def key_figures(found: Mapping[str, Any]) -> list[tuple[str, Cell | None, Cell]]:
    """What a reader wants first: title, figure of the base model (or None), figure now."""
    rows = {row["metric"]: row for row in [*found["paper"], *found["ours"]]}
    wanted = {
        "launches with positive true lift (surely)": "Launches with positive true lift (surely)",
        "true utility, training cards": "True utility",
        "instruction following": "Instruction following",
        "instruction violation": "Instruction violation",
        "instruction following, unseen characters": "Following, unseen characters",
        "over-optimised launches": "Over-optimised launches",
    }
    figures = []
    for name, title in wanted.items():
        row = rows.get(name)
        if row is not None and row["last"] is not None:
            was = None if row["first"] is None else cell(text.figure(row["first"]))
            figures.append((title, was, cell(text.figure(row["last"]))))
    return figures


def _line(title: str, figures: Sequence[Mapping[str, Any]], unit: str | None) -> Line | None:
    if len(figures) < 2 or any(figure["value"] is None for figure in figures):
        return None
    lows = [figure["value"] if figure["low"] is None else figure["low"] for figure in figures]
    highs = [figure["value"] if figure["high"] is None else figure["high"] for figure in figures]
    bottom, top = min(lows), max(highs)
    height = (top - bottom) or 1.0

    def point(place: int, value: float) -> str:
        return f"{100 * place / (len(figures) - 1):.2f},{97 - 94 * (value - bottom) / height:.2f}"

    points = [point(place, figure["value"]) for place, figure in enumerate(figures)]
    upper = [point(place, value) for place, value in enumerate(highs)]
    lower = [point(place, value) for place, value in enumerate(lows)]
    ends = [text.figure({**figures[place], "unit": unit}) for place in (0, -1)]
    return Line(title, " ".join(points), " ".join(upper + lower[::-1]), *ends)


def lines(champions: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Charts over the launches: true utility and instruction following in each group, then the style of all replies."""
    wanted: list[tuple[str, list[Mapping[str, Any]], str | None]] = []
    for key, unit, title in (
        ("utility", "utility", "True utility"),
        ("instruction_following", None, "Instruction following"),
    ):
        for group, of in GROUPS.items():
            wanted.append((f"{title}, {of}", [champion[group][key] for champion in champions], unit))
    for key, title in (("words", "Words a reply"), ("emoji", "Emoji a reply")):
        wanted.append((title, [champion["all"][key] for champion in champions], key))
    variety: list[Mapping[str, Any]] = [
        {"value": champion["all"]["variety"], "low": None, "high": None} for champion in champions
    ]
    wanted.append(("Variety (different word pairs)", variety, None))
    found = (_line(*one) for one in wanted)
    return [line for line in found if line is not None]


def render(found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """The page; every text is escaped.

    Args:
        found: of :func:`flywheel_tasks.campaign.table.document`.
        others: of ablations or other campaigns, by name.
    """
    champions = [text.champion_cells(champion) for champion in found["champions"]]
    values = {
        "found": found,
        "note": text.NOTE,
        "paper_notes": (text.paper_note(found), text.CHECKER),
        "panel": text.PANELS.get(found["panel"]),
        "time": ("at least " if found["resumed"] else "") + words_of(60 * found["minutes"]),
        "key": key_figures(found),
        "paper": _cells(text.PAPER_HEADINGS, [text.paper_cells(row) for row in found["paper"]]),
        "ours": _cells(
            ("metric", "base", "last champion"),
            [[row["metric"], text.figure(row["first"]), text.figure(row["last"])] for row in found["ours"]],
        ),
        "generations": _cells(
            text.GENERATION_HEADINGS, [text.generation_cells(row) for row in found["generations"]]
        ),
        "champions": _cells(text.CHAMPION_HEADINGS[:_WIDE], [row[:_WIDE] for row in champions]),
        "styles": _cells(
            (*text.CHAMPION_HEADINGS[:2], *text.CHAMPION_HEADINGS[_WIDE:]),
            [[*row[:2], *row[_WIDE:]] for row in champions],
        ),
        "others": _cells(text.OTHER_HEADINGS, text.other_rows(found, others)) if others else None,
        "lines": lines(found["champions"]),
        "ceiling": text.ceiling_sentence(found["ceiling"]),
    }
    return render_file(
        "flywheel_tasks.campaign",
        "campaign.html",
        values,
        css="report.css",
        css_package="flywheel_tasks.report",
    )


def write(results: Path, found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``campaign.json``, ``campaign.md`` and ``campaign.html``.

    Args:
        results: the folder.
        found: of :func:`flywheel_tasks.campaign.table.document`.
        others: of ablations or other campaigns, by name.
    """
    write_json({**found, "others": others}, results / "campaign.json")
    for name, content in (
        ("campaign.md", text.markdown(found, others)),
        ("campaign.html", render(found, others)),
    ):
        with atomic_path(results / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
