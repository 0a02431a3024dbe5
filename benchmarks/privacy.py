"""Recall and precision of identifiers by type, and speed, beside Presidio's own recognisers as they come.

``python -m benchmarks.privacy [--per-type 200] [--clean 1000]``. An identifier counts as found if one finding, of
whatever type, covers it whole; a finding that touches no identifier is a false alarm. (Both systems are measured on
that: what matters is that the text is gone.) Types are compared where the table says so.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.privacy_sentences import CLEAN, Sentence, sentences
from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.settings import load_settings

Span = tuple[int, int, str]
Find = Callable[[Sequence[str]], list[list[Span]]]


class Result(NamedTuple):
    """What a system found.

    Attributes:
        recall: found share by (type, disguised).
        precision: by our type, right ones among its findings of that type; empty for a system with other types.
        alarms: share of clean sentences with any finding.
        per_second: sentences a second.
    """

    recall: dict[tuple[str, bool], float]
    precision: dict[str, float]
    alarms: float
    per_second: float


def measure(data: Sequence[Sentence], find: Find) -> Result:
    """Run one system over the set.

    Args:
        data: the sentences.
        find: gives the spans of each text.
    """
    find(["write to warm.up@example.com"])  # what is loaded at the first text is not timed
    started = time.perf_counter()
    spans = find([one.text for one in data])
    seconds = time.perf_counter() - started
    asked: Counter[tuple[str, bool]] = Counter()
    found: Counter[tuple[str, bool]] = Counter()
    right: Counter[str] = Counter()
    said: Counter[str] = Counter()
    alarms = 0
    for one, hits in zip(data, spans, strict=True):
        for start, end, kind in hits:
            said[kind] += 1
            right[kind] += kind == one.type and start < one.end and end > one.start
        if one.type == CLEAN:
            alarms += bool(hits)
            continue
        asked[one.type, one.disguised] += 1
        # Signs at the edges ("call", "+", a bracket) identify nobody.
        inner = [n for n in range(one.start, one.end) if one.text[n].isdigit() or one.text[n] == "@"] or [
            one.start
        ]
        found[one.type, one.disguised] += any(s <= inner[0] and inner[-1] < e for s, e, _ in hits)
    clean = sum(one.type == CLEAN for one in data)
    return Result(
        {key: found[key] / asked[key] for key in asked},
        {kind: right[kind] / said[kind] for kind in said},
        alarms / clean if clean else 0.0,
        len(data) / seconds,
    )


def ours() -> Find:
    """This project's detector, on the settings of params.yaml."""
    detector = Detector(load_settings(Path("params.yaml")).privacy)

    def find(texts: Sequence[str]) -> list[list[Span]]:
        found = detector.find_all(texts)
        return [[(hit.start, hit.end, hit.type) for hit in found[text]] for text in texts]

    return find


def presidio() -> Find:
    """Presidio's default recognisers and score threshold, on a blank spaCy pipeline, one text after the other."""
    import spacy
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}  # type: ignore[assignment]

    engine = AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"])

    def find(texts: Sequence[str]) -> list[list[Span]]:
        return [
            [(hit.start, hit.end, hit.entity_type) for hit in engine.analyze(text, "en")] for text in texts
        ]

    return find


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-type", type=int, default=200)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    data = sentences(options.per_type, options.clean, options.seed)
    us, peer = measure(data, ours()), measure(data, presidio())
    table = Table(title=f"{len(data)} sentences from templates", title_justify="left")
    for heading in ("type", "recall plain", "disguised", "precision", "Presidio plain", "disguised"):
        table.add_column(heading)
    for kind in dict.fromkeys(one.type for one in data if one.type != CLEAN):
        shown = [us.recall[kind, False], us.recall[kind, True], us.precision.get(kind, 0.0)]
        shown += [peer.recall[kind, False], peer.recall[kind, True]]
        table.add_row(kind, *(f"{figure:.1%}" for figure in shown))
    console = Console()
    console.print(table)
    console.print(f"false alarms on clean chat: {us.alarms:.2%}; Presidio {peer.alarms:.2%}")
    ratio = us.per_second / peer.per_second
    console.print(
        f"sentences a second: {us.per_second:,.0f}; Presidio {peer.per_second:,.0f}; {ratio:.1f} times"
    )
    chat = [one for one in data if one.type == CLEAN]
    us, peer = measure(chat, ours()), measure(chat, presidio())
    console.print(f"clean chat alone: {us.per_second:,.0f} a second; Presidio {peer.per_second:,.0f}")


if __name__ == "__main__":
    main()
