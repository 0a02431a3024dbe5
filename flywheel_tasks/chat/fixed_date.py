"""Chat templates that write today's date write one day, whenever they are used.

Llama 3's and others' put the date into every prompt (``strftime_now``). A stage that goes on after midnight would draw
under other prompts than it began with, and two generations would be compared under different ones.
"""

from datetime import datetime
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_NAME = "strftime_now"  # what transformers and vLLM call it
_DAY = datetime(2024, 7, 26)  # where Llama 3's templates are not told a date, they write this one
_CODES = (*"aAbBcdDeFHIjmMpRSTuUVwWxXyYZ", "-d", "-m")
# A macro of a template goes before a global of its name. The plus keeps what follows as it is.
_MACRO = (
    f"{{% macro {_NAME}(format) %}}{{{{ format"
    + "".join(f" | replace('%{code}', '{_DAY.strftime('%' + code)}')" for code in _CODES)
    + " }}{% endmacro +%}"
)


def dated_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, its date fixed: a model may have been saved by another team, or long ago.

    Args:
        folder: of the model; nothing is downloaded.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fix_date(tokenizer)
    return tokenizer


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer's templates write 26 July 2024 for today, in the format they ask for; others stay as they are.

    Args:
        tokenizer: with one chat template, with several or with none. It keeps the change when it is saved.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: _fixed(template) for name, template in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = _fixed(templates)


def _fixed(template: str) -> str:
    return template if _NAME not in template or template.startswith(_MACRO) else _MACRO + template
