"""Names of people and street addresses by a model: a spaCy pipeline, or a token classifier from Hugging Face.

Off by default: a model of names also finds characters of fiction, and costs far more than patterns.
"""

from collections.abc import Callable
from pathlib import Path

from flywheel_tasks.privacy.spelling import canonical
from flywheel_tasks.privacy.types import Finding

# Labels in use (OntoNotes, CoNLL, and sets of personal data) and our types.
_TYPE_OF = {
    **dict.fromkeys(("PERSON", "PER", "NAME", "GIVENNAME", "SURNAME", "FIRSTNAME", "LASTNAME"), "NAME"),
    **dict.fromkeys(("ADDRESS", "STREET", "STREET_ADDRESS", "BUILDINGNUM", "ZIPCODE"), "ADDRESS"),
}
_BATCH = 64
Model = Callable[[list[str]], dict[str, list[Finding]]]


class ModelError(ValueError):
    """The model of ``privacy.model`` cannot be used; the message says why and what to do."""


def _finding(text: str, start: int, end: int, label: str) -> list[Finding]:
    kind = _TYPE_OF.get(label.upper())
    return [] if kind is None else [Finding(start, end, kind, canonical(kind, text[start:end]))]


def _useful(name: str, labels: list[str]) -> None:
    if not any(label.upper().removeprefix("B-").removeprefix("I-") in _TYPE_OF for label in labels):
        raise ModelError(
            f"privacy.model {name} finds {', '.join(sorted(labels)) or 'nothing'}: no names and no addresses "
            f"(labels that are known: {', '.join(_TYPE_OF)})"
        )


def _spacy(name: str) -> Model:
    import spacy

    try:
        pipeline = spacy.load(name)
    except OSError as error:
        raise ModelError(
            f"privacy.model: there is no spaCy pipeline {name}: install it (python -m spacy download {name}), give "
            "its folder, or set privacy.model to null"
        ) from error
    labels = [
        label
        for pipe in ("ner", "entity_ruler")
        if pipe in pipeline.pipe_names
        for label in pipeline.pipe_labels[pipe]
    ]
    _useful(name, labels)

    def find(texts: list[str]) -> dict[str, list[Finding]]:
        found = {}
        for text, document in zip(texts, pipeline.pipe(texts, batch_size=_BATCH), strict=True):
            hits = [_finding(text, e.start_char, e.end_char, e.label_) for e in document.ents]
            found[text] = [hit for some in hits for hit in some]
        return found

    return find


def _hugging_face(name: str) -> Model:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    try:
        model = AutoModelForTokenClassification.from_pretrained(name, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"privacy.model: {name} cannot be loaded as a token classifier: {error}") from error
    _useful(name, [str(label) for label in model.config.id2label.values()])
    classify = pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple"
    )

    def find(texts: list[str]) -> dict[str, list[Finding]]:
        found = {}
        for text, hits in zip(texts, classify(texts, batch_size=_BATCH), strict=True):
            spans = [_finding(text, int(hit["start"]), int(hit["end"]), hit["entity_group"]) for hit in hits]
            found[text] = [hit for some in spans for hit in some]
        return found

    return find


def open_model(name: str) -> Model:
    """The model of the setting ``privacy.model``.

    Args:
        name: an installed spaCy pipeline or its folder, or a Hugging Face hub id (``owner/name``) or its folder.

    Raises:
        ModelError: it is not installed, cannot be loaded, or finds neither names nor addresses.
    """
    folder = Path(name).is_dir()
    if (folder and (Path(name) / "config.json").exists()) or (not folder and "/" in name):
        return _hugging_face(name)
    return _spacy(name)
