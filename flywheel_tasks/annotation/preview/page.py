"""Tasks of a batch as one HTML file that needs nothing else: to read before they are handed out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flywheel_tasks.annotation.interface import (
    CANNOT_REWRITE,
    EQUAL,
    LETTERS,
    NO,
    REWRITE_HEADERS,
    YES,
    better,
)
from flywheel_tasks.annotation.label_studio import task_data
from flywheel_tasks.annotation.tasks import VIOLATES_CARD
from flywheel_tasks.report.template import render_file
from flywheel_tasks.storage.atomic import atomic_path

Row = dict[str, Any]


def write_preview(tasks: Sequence[Mapping[str, Any]], out: Path, *, generation: str, most: int) -> int:
    """Write the page.

    Args:
        tasks: rows of the batch.
        out: the HTML file.
        generation: shown in the title.
        most: tasks of each kind.

    Returns:
        how many tasks are shown.
    """
    shown: list[Row] = []
    kinds: dict[str, int] = {}
    for task in tasks:
        kinds[task["kind"]] = kinds.get(task["kind"], 0) + 1
        if kinds[task["kind"]] <= most:
            shown.append(_view(task))
    values = {"generation": generation, "tasks": shown, "kinds": sorted(kinds.items()), "total": len(tasks)}
    page = render_file("flywheel_tasks.annotation.preview", "preview.html", values)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return len(shown)


def _view(task: Mapping[str, Any]) -> Row:
    data = task_data(task)
    count = len(task["candidates"])
    pair = (better(LETTERS[0]), better(LETTERS[1]), EQUAL)
    return {
        "id": task["task_id"],
        "kind": task["kind"],
        "reviews": task["reviews"],
        "interface": data["interface"],
        "card": Markup(data["card"]),  # noqa: S704 - task_data has escaped every text of it
        "conversation": Markup(data["conversation"]),  # noqa: S704 - and of the turns
        "replies": [
            {
                "title": f"Reply {LETTERS[number]}" if count > 1 else "Reply",
                "text": data[f"reply_{number}"],
                "questions": _questions(task, data),
                "places": [str(place) for place in range(1, count + 1)] if count > 2 else [],
            }
            for number in range(count)
        ],
        "preference": pair if count == 2 else (),
        "rewrite": REWRITE_HEADERS[task["kind"]],
        "guidelines": task["guidelines"],
        "skip": CANNOT_REWRITE if task["kind"] != "comparison" else "",
    }


def _questions(task: Mapping[str, Any], data: Mapping[str, Any]) -> list[Row]:
    found = []
    for question in task["questions"]:
        if task["kind"] == "steerability" and question["name"] == VIOLATES_CARD:
            choices = [rule["value"] for rule in data["rules"]]
            text = "Which of the highlighted instructions and traits does it violate?"
            found.append({"text": text, "choices": choices, "kind": "checkbox"})
        else:
            choices = question["choices"] or [YES, NO]
            found.append({"text": question["text"], "choices": choices, "kind": "radio"})
    return found
