"""What Label Studio exports, made as it makes it: regions of the format JSON, and JSON_MIN by its own converter."""

import json
from collections.abc import Mapping, Sequence

from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

from flywheel_tasks.annotation.interface import (
    CANNOT_REWRITE,
    LETTERS,
    NO,
    NO_VIOLATION,
    YES,
    better,
    interface_of,
)
from flywheel_tasks.annotation.label_studio import rule_choices, task_data


def filled(task, order=None, *, faults=(), violated=None, rewrite=None, skipped=False):
    """What an annotator enters, by control; ``order`` holds candidate numbers, best first."""
    count = len(task["candidates"])
    order = list(range(count)) if order is None else order
    values = {}
    for number in range(count):
        for question in task["questions"]:
            if task["kind"] == "steerability" and question["name"] == "violates_card":
                rules = rule_choices(task["card"])
                named = [rules[rule] for rule in (violated or {}).get(number, ())]
                values[f"violated_{number}"] = named or [NO_VIOLATION]
            elif question["choices"] is None:
                fault = question["name"] == "violates_card" and number in faults
                values[f"{question['name']}_{number}"] = [YES if fault else NO]
            else:
                values[f"{question['name']}_{number}"] = [question["choices"][-1]]
    if task["kind"] != "rewrite" and count == 2:
        values["preference"] = [better(LETTERS[order[0]])]
    elif task["kind"] != "rewrite":
        values |= {f"place_{number}": [str(place + 1)] for place, number in enumerate(order)}
    if rewrite is not None:
        values["rewrite"] = [rewrite]
    if skipped:
        values["rewrite_skipped"] = [CANNOT_REWRITE]
    return values


def result_of(task, values: Mapping[str, Sequence[str]]):
    """The ``result`` of an annotation: one region for each control, tied to the object that the control names."""
    interface = LabelInterface(interface_of(task))
    result = []
    for number, (name, entered) in enumerate(values.items()):
        control = interface.get_control(name)
        kind = control.tag.lower()
        result.append(
            {
                "id": f"r{number:09d}",
                "from_name": name,
                "to_name": control.to_name[0],
                "type": kind,
                "origin": "manual",
                "value": {"text" if kind == "textarea" else kind: list(entered)},
            }
        )
    return result


def annotation(task, values, *, number=1, by=7, updated="2026-11-09T10:00:00.000000Z", cancelled=False):
    """One annotation, with the fields that an export has."""
    return {
        "id": number,
        "completed_by": by,
        "result": result_of(task, values),
        "was_cancelled": cancelled,
        "ground_truth": False,
        "created_at": "2026-11-09T09:59:00.000000Z",
        "updated_at": updated,
        "draft_created_at": None,
        "lead_time": 41.25,
        "prediction": {},
        "result_count": len(values),
        "unique_id": f"00000000-0000-4000-8000-{number:012d}",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": 1,
        "project": 3,
        "updated_by": by,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }


def exported(task, *annotations, number=1, drafts=()):
    """One task of the format JSON."""
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "batch.json",
        "drafts": list(drafts),
        "predictions": [],
        "data": task_data(task),
        "meta": {},
        "created_at": "2026-11-09T09:00:00.000000Z",
        "updated_at": "2026-11-09T10:00:00.000000Z",
        "inner_id": number,
        "total_annotations": len(annotations),
        "cancelled_annotations": sum(item["was_cancelled"] for item in annotations),
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 3,
        "updated_by": 7,
        "comment_authors": [],
    }


def json_min(task, rows, folder):
    """The same export in the format JSON_MIN, written by Label Studio's converter."""
    source = folder / "source.json"
    source.write_text(json.dumps(rows))
    converter = Converter(interface_of(task), str(folder), download_resources=False)
    converter.convert_to_json_min(str(source), str(folder / "min"), is_dir=False)
    return json.loads((folder / "min/result.json").read_text())
