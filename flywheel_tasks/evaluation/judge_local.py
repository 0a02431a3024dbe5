"""A judge in memory: a causal model from a folder or from the Hugging Face hub."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from flywheel_tasks.evaluation.judging import SYSTEM, TRIAL, JudgeError
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.hub import hub_model


class LocalJudge:
    """A causal model in memory: P(yes) against P(no) as the first token of its answer."""

    def __init__(self, model: str, compute: Compute, forbidden: Iterable[Path]) -> None:
        """Load the model.

        Args:
            model: a folder, or a Hugging Face hub id.
            compute: precision and threads.
            forbidden: folders of the models that are trained or judged; a judge with their weights is refused.

        Raises:
            JudgeError: the model is missing, is one of these, or its chat template is missing or cannot be used.
        """
        from flywheel_tasks.evaluation.same_weights import same_weights
        from flywheel_tasks.training.precision import device, resolve_dtype, set_threads

        folder = Path(model) if Path(model).is_dir() else _from_hub(model)
        for other in forbidden:
            if same_weights(folder, other):
                raise JudgeError(f"the judge {model} has the weights of {other}: a model never judges itself")
        from transformers import AutoModelForCausalLM

        from flywheel_tasks.chat.fixed_date import dated_tokenizer

        set_threads(compute)
        self.name = model
        self.identity = _identity(folder)
        self._tokenizer = dated_tokenizer(folder)
        self._try_template(folder)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=resolve_dtype(compute), use_safetensors=True
        )
        self._model = loaded.to(device()).eval()  # type: ignore[arg-type]
        self._yes, self._no = (self._first_tokens(word) for word in ("yes", "no"))

    def _try_template(self, folder: Path) -> None:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise JudgeError(
                f"the judge {self.name}: {folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), so it cannot be asked"
            )
        try:
            self._ids(TRIAL)
        except (TemplateError, ValueError) as error:
            raise JudgeError(
                f"the judge {self.name}: its chat template takes no question: {error}"
            ) from error

    def _ids(self, prompt: str) -> list[int]:
        from flywheel_tasks.chat.prompt import placed

        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        ids = self._tokenizer.apply_chat_template(
            placed(self._tokenizer, messages), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return cast(list[int], ids)

    def _first_tokens(self, word: str) -> list[int]:
        forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}", word.upper())
        return sorted({self._tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms})

    def yes(self, prompts: Sequence[str]) -> list[float | None]:
        """See :class:`flywheel_tasks.evaluation.judging.Judging`."""
        import torch

        found: list[float | None] = []
        for prompt in prompts:
            with torch.inference_mode():
                inputs = torch.tensor([self._ids(prompt)], device=self._model.device)
                logits = self._model(inputs, logits_to_keep=1).logits[0, -1].float()
            yes, no = (torch.logsumexp(logits[tokens], 0).item() for tokens in (self._yes, self._no))
            against = no - yes  # asked before it is bounded: max(-50, NaN) is -50
            bounded = min(50.0, max(-50.0, against))
            found.append(1 / (1 + math.exp(bounded)) if math.isfinite(against) else None)
        return found


def _identity(folder: Path) -> str:
    """Which files these are, without reading gigabytes: names, sizes and times of change."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    return bytes_digest(repr(files).encode()).removeprefix("sha256:")[:16]  # no colon in a file's name


def _from_hub(model: str) -> Path:
    try:
        return hub_model(model)
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"judge {model}: neither a folder nor a model that the hub gives: {error}"
        ) from error
