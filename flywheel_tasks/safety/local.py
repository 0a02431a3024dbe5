"""A text classifier from a Hugging Face folder or hub id, on this machine."""

import math
from collections.abc import Sequence

from flywheel_tasks.safety.classifier import SafetyError, Scores

_OVERLAP = 32  # tokens that two windows of a long text share


class LocalClassifier:
    """Scores every label of a model but the safe ones; a long text has the worst score of its windows.

    Args:
        model: hub id or folder of a sequence classifier, as safetensors.
        safe_labels: its labels that are no harm, in any case.
        batch_size: windows judged together.

    Raises:
        SafetyError: it cannot be loaded, or has no label of harm.
    """

    def __init__(self, model: str, safe_labels: Sequence[str], batch_size: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._model = AutoModelForSequenceClassification.from_pretrained(
                model, use_safetensors=True
            ).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise SafetyError(f"safety.model: {model} cannot be loaded: {error}") from error
        labels = {int(number): str(name) for number, name in self._model.config.id2label.items()}
        safe = {label.lower() for label in safe_labels}
        self._harms = {number: name for number, name in labels.items() if name.lower() not in safe}
        if not self._harms or len(self._harms) == len(labels) == 1:
            raise SafetyError(
                f"safety.model: {model} has the labels {sorted(labels.values())}: none is a harm"
            )
        self._independent = self._model.config.problem_type == "multi_label_classification"
        if not self._independent and len(self._harms) == len(labels):
            raise SafetyError(
                f"safety.model: {model} has the labels {sorted(labels.values())}, one of which every text gets, and "
                "safe_labels names none of them: every text would be unsafe"
            )
        self._batch_size = batch_size
        self._positions = getattr(self._model.config, "max_position_embeddings", 512) - sum(
            module.padding_idx + 1  # RoBERTa and its like count positions from there
            for name, module in self._model.named_modules()
            if name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None
        )

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        """See :class:`flywheel_tasks.safety.classifier.SafetyClassifier`."""
        import torch

        length = min(self._tokenizer.model_max_length, self._positions)
        windows = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=length,
            stride=min(_OVERLAP, length // 4),
            return_overflowing_tokens=True,
        )
        owners = windows.pop("overflow_to_sample_mapping")
        found: list[dict[str, float]] = [{} for _ in texts]
        for start in range(0, len(owners), self._batch_size):
            stop = start + self._batch_size
            part = {key: values[start:stop] for key, values in windows.items()}
            batch = self._tokenizer.pad(part, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**batch).logits.float()
            scores = torch.sigmoid(logits) if self._independent else torch.softmax(logits, dim=-1)
            for owner, row in zip(owners[start:stop], scores.tolist(), strict=True):
                for number, name in self._harms.items():
                    # NaN compares as false: it must win over any number, so that it is seen.
                    known = found[owner].get(name, 0.0)
                    found[owner][name] = known if math.isnan(known) or row[number] <= known else row[number]
        return found
