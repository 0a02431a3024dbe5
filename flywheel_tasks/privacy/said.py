"""Identifiers in what models and annotators write: such texts are left out, by the same two scans as prompts."""

from collections.abc import Iterable

from flywheel_tasks.privacy.outgoing import identifiers_in, kept_types
from flywheel_tasks.privacy.types import fictional
from flywheel_tasks.settings import Privacy


def identifiers_said(
    texts: Iterable[str], settings: Privacy, characters: Iterable[str] = ()
) -> dict[str, str]:
    """Texts that hold an identifier, by the detector or the outgoing scan, and the type of one in each.

    Args:
        texts: replies, or texts of annotators.
        settings: the section ``privacy``; types that its policy keeps may be said.
        characters: names of characters, which are nobody's.

    Raises:
        ModelError: the model of ``privacy.model`` is not installed, or is of no use here.
    """
    distinct = dict.fromkeys(text for text in texts if text.strip())
    if not distinct:
        return {}
    from flywheel_tasks.privacy.detector import Detector  # takes seconds to load

    kept, nobodys = frozenset(kept_types(settings.policy)), fictional(characters)
    said: dict[str, str] = {}
    for text, hits in Detector(settings).find_all(distinct).items():
        types = [hit.type for hit in hits if not (hit.type == "NAME" and hit.value in nobodys)]
        found = next((kind for kind in [*types, *identifiers_in(text)] if kind not in kept), None)
        if found is not None:
            said[text] = found
    return said
