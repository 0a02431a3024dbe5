"""The project's own dialogue lines: hand-labelled replies (refuses or not) to what a user said.

They train the refusal detector (:mod:`flywheel_tasks.evaluation.train_refusals`); those written by hand are a sample of
ordinary language for the template detector (:mod:`flywheel_tasks.evaluation.templates`).
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

WRITTEN = "refusal_lines.txt"  # by hand


@dataclass(frozen=True)
class Line:
    """A labelled reply.

    Attributes:
        request: number of its request; lines of one request are in one part.
        said: the user's turn.
        reply: the text.
        refuses: the label.
    """

    request: int
    said: str
    reply: str
    refuses: bool


def read_lines(text: str) -> list[Line]:
    """The labelled lines of a file: ``@`` what the user said, ``+`` a refusal, ``-`` none, ``#`` a comment.

    Raises:
        ValueError: a line has another form; the message names its number.
    """
    found: list[Line] = []
    said, request = "", -1
    for number, line in enumerate(text.splitlines(), start=1):
        mark, rest = line[:2], line[2:].strip()
        if mark == "@ ":
            said, request = rest, request + 1
        elif mark in ("+ ", "- ") and rest and request >= 0:
            found.append(Line(request, said, rest, mark == "+ "))
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"line {number}: must start with '@ ', '+ ', '- ' or '#'")
    return found


def text_of(*names: str) -> str:
    """Files of this package, one after the other."""
    package = files("flywheel_tasks.evaluation")
    return "\n".join(package.joinpath(name).read_text(encoding="utf-8") for name in names)


@cache
def written_lines() -> tuple[Line, ...]:
    """The lines that were written by hand."""
    return tuple(read_lines(text_of(WRITTEN)))
