"""``flywheel score``: metrics of the replies in a file, without a trained model; rewards with one."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flywheel_tasks.evaluation.refusal_detector import Detector

_EVERY_SECONDS = 5.0


class _Progress:
    """A line on standard error every few seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started = self._shown = time.monotonic()

    def advance(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._shown >= _EVERY_SECONDS:
            self._shown = now
            left = (self._total - self._done) * (now - self._started) / self._done
            typer.echo(f"score: {self._done}/{self._total} replies, {left:.0f} s left", err=True)


@contextmanager
def _opened(out: str) -> "Iterator[IO[bytes]]":
    from flywheel_tasks.storage.atomic import atomic_path

    if out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_path(Path(out)) as temporary, temporary.open("wb") as file:
        yield file


_EMBEDDER = Path("models/embedder")
_WORDS = Path("safety_words")


def _detector(embedder: Path | None) -> "Detector":
    """The trained detector; without a folder given, the rules where the workspace has no embedder for it.

    Raises:
        ScoreFileError: it can't be used with the embedder that is given.
    """
    from flywheel_tasks.evaluation.refusal_detector import open_detector
    from flywheel_tasks.evaluation.score import ScoreFileError
    from flywheel_tasks.settings import Compute

    detector = open_detector(embedder or _EMBEDDER, Compute(precision="float32", threads=2))
    if embedder is not None and detector.why:
        raise ScoreFileError(detector.why)
    return detector


def score(
    file: Annotated[
        str, typer.Argument(help="JSON Lines of {id, card, history, reply}, or - for standard input.")
    ],
    out: Annotated[
        str, typer.Option("--out", help="Written whole or not at all; - is standard output.")
    ] = "-",
    reward: Annotated[
        Path | None, typer.Option(help="Folder of a pointwise reward model: adds rewards.", file_okay=False)
    ] = None,
    embedder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the trained refusal detector's embedder; models/embedder by default. Without one the "
            "rules decide.",
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Metrics of each reply of a file, as JSON Lines of {id, metrics} in the same order."""
    from flywheel_tasks.evaluation.score import ScoreFileError, read
    from flywheel_tasks.evaluation.score import score as scored
    from flywheel_tasks.safety.requests import own_words

    if file == "-":
        lines, name = sys.stdin.buffer.readlines(), "standard input"
    else:
        try:
            lines, name = Path(file).read_bytes().splitlines(), file
        except OSError as error:
            raise ScoreFileError(f"{file}: {error.strerror or error}") from error
    if reward is not None and not reward.is_dir():
        raise ScoreFileError(f"{reward}: no such folder")
    if embedder is not None and not embedder.is_dir():
        raise ScoreFileError(f"{embedder}: no such folder")
    rows = read(lines, name)
    detector = _detector(embedder)
    listed = own_words(_WORDS)
    progress = _Progress(len(rows))
    with _opened(out) as target:
        for line in scored(rows, reward, progress.advance, detector, listed):
            target.write(line)
    why = f" ({detector.why})" if detector.why else ""
    typer.echo(
        f"{len(rows)} replies scored, refusals by the {detector.name}{why}; null is not measured: it needs a judge, "
        "a checkable rule, or a script that can be read",
        err=True,
    )
