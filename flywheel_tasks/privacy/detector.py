"""Finds the identifiers in texts; each distinct text is looked at once."""

from collections.abc import Iterable, Mapping

from presidio_analyzer import LocalRecognizer

from flywheel_tasks.privacy.folding import fold
from flywheel_tasks.privacy.recognisers import NO_MODEL, PREFILTER, recognisers
from flywheel_tasks.privacy.spelling import canonical
from flywheel_tasks.privacy.types import TYPES, Finding
from flywheel_tasks.privacy.windows import SIZE, windows
from flywheel_tasks.settings import Privacy

_BLOT = "\u00a4"  # in the place of what was found: no letter, no digit, no separator
_ENDLESS = frozenset({"SECRET", "URL_SECRET", "URL"})
_RANK = {kind: rank for rank, kind in enumerate(TYPES)}


class Detector:
    """Finds identifiers by patterns and check digits, and names and addresses if a model is configured.

    Args:
        settings: the section ``privacy``.

    Raises:
        ModelError: the model is not installed, or is of no use here.
    """

    def __init__(self, settings: Privacy) -> None:
        self._recognisers = recognisers(settings.phone_regions)
        # Keys and links may be longer than any window; their expressions are linear.
        self._endless = [one for one in self._recognisers if one.supported_entities[0] in _ENDLESS]
        self._model = None
        if settings.model is not None:
            from flywheel_tasks.privacy.model import open_model

            self._model = open_model(settings.model)

    def find_all(self, texts: Iterable[str]) -> Mapping[str, list[Finding]]:
        """The findings of each distinct text, in the order of the text; texts without any have an empty list."""
        distinct = dict.fromkeys(texts)
        named = self._model(list(distinct)) if self._model is not None else {}
        return {text: self._find(text, named.get(text, [])) for text in distinct}

    def find(self, text: str) -> list[Finding]:
        """The findings of one text."""
        return self.find_all([text])[text]

    def _find(self, text: str, named: list[Finding]) -> list[Finding]:
        folded = fold(text)
        found: list[Finding] = []
        if PREFILTER.search(folded.text) is not None:
            for window in windows(folded.text):
                for hit in self._in_part(folded.text[window.start : window.end]):
                    start, end = window.start + hit.start, window.start + hit.end
                    if window.vouches(start, end):
                        found.append(hit._replace(start=start, end=end))
            if len(folded.text) > SIZE:
                found += self._by_pattern(folded.text, self._endless)
        original = [Finding(*folded.span(hit.start, hit.end), hit.type, hit.value) for hit in found]
        return _without_overlaps([*original, *named])

    def _in_part(self, text: str) -> list[Finding]:
        """The findings of a short text."""
        kept: list[Finding] = []
        # What is found is blotted out and the rest looked at again: a number may have reached into its neighbour.
        while PREFILTER.search(text) is not None:
            spans = _without_overlaps(self._by_pattern(text, self._recognisers))
            if not spans:
                break
            kept += spans
            for start, end, _, _ in spans:
                text = text[:start] + _BLOT * (end - start) + text[end:]
        return kept

    def _by_pattern(self, text: str, recognisers: list[LocalRecognizer]) -> list[Finding]:
        return [
            Finding(
                hit.start, hit.end, hit.entity_type, canonical(hit.entity_type, text[hit.start : hit.end])
            )
            for recogniser in recognisers
            for hit in recogniser.analyze(text, recogniser.supported_entities, NO_MODEL)
        ]


def _without_overlaps(found: list[Finding]) -> list[Finding]:
    """Of findings that overlap, the one whose type comes first in TYPES, then the longest."""
    kept: list[Finding] = []
    taken = bytearray(
        max((one.end for one in found), default=0)
    )  # by character, so that many findings are no square
    for one in sorted(found, key=lambda item: (_RANK[item.type], item.start - item.end, item.start)):
        if taken.find(1, one.start, one.end) < 0:
            taken[one.start : one.end] = b"\1" * (one.end - one.start)
            kept.append(one)
    return sorted(kept)
