"""The labelling interface: Label Studio's XML configuration for each kind of task.

Every control belongs to exactly one object. With ``toName="a,b"`` Label Studio lost what annotators had entered
(HumanSignal/label-studio#5649), which is why the comparison is made of plain choices too.
"""

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.annotation.tasks import VIOLATES_CARD, Question

LETTERS = "ABCDEFGH"
YES, NO = "Yes", "No"
EQUAL = "Equally good"
NO_VIOLATION = "None: it keeps to all of them"
CANNOT_REWRITE = "I cannot write a better one"
_STYLE = """
.fw-context { display: flex; gap: 16px; align-items: flex-start; flex-wrap: wrap; margin-bottom: 16px }
.fw-context > div { flex: 1 1 320px; min-width: 0 }
.fw-replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 16px }
.fw-reply { border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 8px; padding: 12px; min-width: 0 }
.fw-card ul { list-style: disc; padding-left: 20px; margin-bottom: 8px }
.fw-said { max-height: 420px; overflow-y: auto }
.fw-said p { margin-bottom: 8px; white-space: pre-wrap; overflow-wrap: anywhere }
.fw-text { font-size: 16px; margin-bottom: 12px; border-radius: 6px; background: rgba(128, 128, 128, 0.15) }
.fw-verdict { margin-top: 16px; border-top: 1px solid rgba(128, 128, 128, 0.5); padding-top: 12px }
"""
REWRITE_HEADERS = {
    "comparison": "If even the best reply is not good enough: write it as it should be (optional)",
    "steerability": "If every reply breaks the card: write your favourite as it should be",
    "rewrite": "Write the reply as it should be",
}


def better(letter: str) -> str:
    """The choice that says one of two replies is better."""
    return f"Reply {letter} is better"


def _choices(parent: ET.Element, name: str, to: str, values: Sequence[str], **attributes: str) -> None:
    tag = ET.SubElement(
        parent, "Choices", name=name, toName=to, choice="single-radio", showInline="true", required="true"
    )
    tag.attrib |= attributes
    for value in values:
        ET.SubElement(tag, "Choice", value=value)


def _header(parent: ET.Element, text: str, size: str = "5") -> None:
    ET.SubElement(parent, "Header", value=text, size=size)


def _html(parent: ET.Element, name: str) -> None:
    """HTML that stands in the task itself; servers in secure mode would take it for an address if it were not said."""
    ET.SubElement(parent, "HyperText", name=name, value=f"${name}", valueType="text", inline="true")


def _reply(parent: ET.Element, kind: str, number: int, count: int, asked: Sequence[Question]) -> None:
    """One reply with the questions about it."""
    box = ET.SubElement(parent, "View", className="fw-reply")
    title = f"Reply {LETTERS[number]}" if count > 1 else "Reply"
    _header(box, title, "4")
    name = f"reply_{number}"
    text = ET.SubElement(box, "View", className="fw-text")
    ET.SubElement(text, "Text", name=name, value=f"${name}", valueType="text")

    def ask(question: str, control: str, values: Sequence[str], **attributes: str) -> None:
        _header(box, question)
        # Without it Label Studio names the control, which says nothing to an annotator.
        missing = f"{title}, not answered: {question}"
        _choices(box, f"{control}_{number}", name, values, requiredMessage=missing, **attributes)

    for question in asked:
        if kind == "steerability" and question["name"] == VIOLATES_CARD:
            asking = "Which of the highlighted instructions and traits does it violate?"
            ask(asking, "violated", (), choice="multiple", value="$rules", showInline="false")
        else:
            ask(question["text"], question["name"], question["choices"] or (YES, NO))
    if count > 2:
        places = [str(place) for place in range(1, count + 1)]
        ask("Its place among the replies: 1 is the one you would go on talking with", "place", places)


def _verdict(parent: ET.Element, kind: str, count: int, guidelines: str) -> None:
    """Preference and rewrite, below the replies."""
    box = ET.SubElement(parent, "View", className="fw-verdict")
    if count == 2:
        asking = "Which reply would you rather go on talking with?"
        _header(box, asking, "4")
        values = (better(LETTERS[0]), better(LETTERS[1]), EQUAL)
        _choices(box, "preference", "reply_0", values, requiredMessage=f"Not answered: {asking}")
    _header(box, REWRITE_HEADERS[kind], "4")
    _header(box, guidelines)
    ET.SubElement(
        box, "TextArea", name="rewrite", toName="reply_0", rows="4", maxSubmissions="1", editable="true"
    )
    if kind != "comparison":
        _choices(box, "rewrite_skipped", "reply_0", (CANNOT_REWRITE,), choice="multiple", required="false")


def interface_xml(kind: str, count: int, asked: Sequence[Question], guidelines: str) -> str:
    """The labelling configuration of one kind of task.

    Args:
        kind: comparison, steerability or rewrite.
        count: replies shown; 1 for a rewrite.
        asked: questions about each reply.
        guidelines: for rewrites, as annotators read them.
    """
    root = ET.Element("View")
    ET.SubElement(root, "Style").text = _STYLE
    context = ET.SubElement(root, "View", className="fw-context")
    _html(ET.SubElement(context, "View", className="fw-card"), "card")
    # Paragraphs, which is made for dialogues, shows times, a filter and a button for regions that nobody needs here.
    _html(ET.SubElement(context, "View", className="fw-said"), "conversation")
    replies = ET.SubElement(root, "View", className="fw-replies")
    for number in range(count):
        _reply(replies, kind, number, count, asked)
    _verdict(root, kind, count, guidelines)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def interface_of(task: Mapping[str, Any]) -> str:
    """The labelling configuration of a task of the batch."""
    return interface_xml(task["kind"], len(task["candidates"]), task["questions"], task["guidelines"])


def interface_id(task: Mapping[str, Any]) -> str:
    """Kind, replies and digest of the configuration; labels made with another one are not read."""
    digest = hashlib.sha256(interface_of(task).encode()).hexdigest()[:12]
    return f"{task['kind']}-{len(task['candidates'])}-{digest}"
