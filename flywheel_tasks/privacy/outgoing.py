"""The second scan: whatever a stage writes that can leave for annotation or training is looked at again.

It is independent of the first: other expressions, other checksum code, no Presidio, nothing shared with the rest of
this package. It is strict, so that a hit is a fault of what came before, and a hit stops the run: the outputs of the
stage never appear. Every stage is scanned that writes below ``data/``, unless ``dvc.yaml`` says that its data stay
here (``meta.private``), so that a new stage cannot forget it (:mod:`flywheel_tasks.pipeline.stage`).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.parquet as pq

_SHOWN = 20
_BATCH_ROWS = 2000
_HIDDEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\u00ad\u20e3]")
_SHORTEST_IBAN = 15  # characters (Norway's)
_TELLING = re.compile(r"https?://[^\s/@:]+:[^\s/@]+@|[?&](?:access_token|token|api_key|password|sig)=\S{6}")
# Normalised a part at a time: of a long run of accents, the time would grow with its square.
_PART = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]{1,1000}")
_DIGIT = re.compile(r"\D+")


class OutgoingError(RuntimeError):
    """Something that leaves holds an identifier; the message names file, row, field and type, never the text."""


class Hit(NamedTuple):
    """Where an identifier is.

    Attributes:
        row: number of the row or line, from 1.
        field: path within it, such as ``history[1].content``.
        type: as in ``privacy.policy``; USER_ID for a user id that is not a hash.
    """

    row: int
    field: str
    type: str


def _luhn(digits: str) -> bool:
    odd = sum(map(int, digits[-1::-2]))
    even = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (odd + even) % 10 == 0


def _card(text: str) -> bool:
    digits = _DIGIT.sub("", text)
    issuers = (r"4(?:\d{12}|\d{15}|\d{18})", r"5[1-5]\d{14}", r"3[47]\d{13}", r"6(?:011|5\d\d)\d{12}")
    return any(re.fullmatch(issuer, digits) for issuer in issuers) and len(set(digits)) > 1 and _luhn(digits)


def _iban(text: str) -> bool:
    """Whether the beginning of a match is an account: capital words may follow it, which the expression takes along."""
    groups = text.split(" ")
    starts = ("".join(groups[: count + 1]) for count in range(len(groups)))
    return any(len(start) >= _SHORTEST_IBAN and _remainder(start) == 1 for start in starts)


def _remainder(plain: str) -> int:
    remainder = 0
    for character in plain[4:] + plain[:4]:
        value = ord(character) - (48 if character.isdigit() else 55)
        remainder = (remainder * (10 if value < 10 else 100) + value) % 97
    return remainder


def _telling(text: str) -> bool:
    return _TELLING.search(text) is not None


def _international(text: str) -> bool:
    return 10 <= len(_DIGIT.sub("", text)) <= 15


def _letters(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "LM" for character in text)


def _foreign(text: str) -> bool:
    """Whether a name's last character, an @ and labels, not all in ASCII, are an address: one ends in letters."""
    if not (text[0].isalnum() or text[0] in "_%+-" or _letters(text[0])):
        return False
    domain, *tops = text[2:].split(".")
    plain = domain.isascii()
    for label in tops:
        # What stands behind it without a space, such as a quotation mark, is no part of it.
        top = "".join(takewhile(_letters, label))
        mixed = not top.isascii() and re.search("[A-Za-z]", top) is not None
        if len(top) > 1 and not mixed and not (plain and top.isascii()):
            return True
        plain = plain and label.isascii()
    return False


def _always(text: str) -> bool:
    return True


# Type, expression, and what else must hold of a match.
_RULES = (
    # From the start of its word: begun anew at every letter, a long word would cost its square.
    ("EMAIL", r"(?<![A-Za-z0-9._%+-])[._%+-]*[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}", _always),
    # Of any script, such as "иван@почта.рф"; the last of what is before the @ is enough.
    ("EMAIL", r"[^\s@]@(?:[A-Za-z0-9-]|[^\x00-\x7f])+(?:\.(?:[A-Za-z0-9-]|[^\x00-\x7f])+)+", _foreign),
    # As it is said: "anna at example[.]com", "anna (at) example (dot) com". A plain "at" needs dots without spaces.
    (
        "EMAIL",
        r"(?i:(?<![a-z0-9._%+-])[a-z0-9][a-z0-9._%+-]{0,63}"
        r"(?:(?: ?[(\[{](?:at|@)[)\]}] ?| ?@ ?)(?:[a-z0-9-]+ ?[(\[{](?:dot|\.)[)\]}] ?)+"
        r"| ?[(\[{](?:at|@)[)\]}] ?(?:[a-z0-9-]+\.)+"
        r"| at (?:[a-z0-9-]+[(\[{](?:dot|\.)[)\]}])+)[a-z]{2,})",
        _always,
    ),
    ("CARD", r"(?<!\w)\d(?:[ .-]?\d){12,18}(?!\w)", _card),
    ("IBAN", r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", _iban),
    ("NATIONAL_ID", r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", _always),
    (
        "NATIONAL_ID",
        r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)",
        _always,
    ),
    ("PHONE", r"(?<![\w+])\+\d{1,3}[ .-]\(?\d{2,4}\)?(?:[ .-]\d{2,4}){2,4}(?!\w)", _international),
    ("PHONE", r"\(\d{3}\) ?\d{3}-\d{4}(?!\w)|(?<![\w-])\d{3}-\d{3}-\d{4}(?![\w-])", _always),
    (
        "IP",
        r"(?<![\w.])(?<![Vv]ersion )(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}"
        r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]\d)(?!\w|\.\d)",
        _always,
    ),
    ("URL_SECRET", r"https?://\S+", _telling),
    ("URL", r"https?://[\w-]+\.\w", _always),
    ("CRYPTO", r"(?<!\w)0x[0-9a-fA-F]{40}(?!\w)", _always),
    (
        "SECRET",
        r"(?<!\w)(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|sk-(?:proj-|ant-)?[A-Za-z0-9]{32,}|AIza[\w-]{35})(?!\w)"
        r"|-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----",
        _always,
    ),
    (
        "SECRET",
        r"(?<!\w)(?i:(?:api|secret)[ _-]?key|access[ _-]?token|bearer)[ :=]{1,3}(?:is )?"
        r"(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}",
        _always,
    ),
)  # fmt: skip
_COMPILED = [(kind, re.compile(expression), holds) for kind, expression, holds in _RULES]
# Ids are long numbers often enough; an address in one is no accident.
_IN_IDS = frozenset({"EMAIL", "URL", "URL_SECRET"})
_HASHED = re.compile(r"u_[0-9a-f]{32}")
# A text without any of these has none of the above.
_POSSIBLE = re.compile(
    r"@|[(\[{](?i:at|dot|\.)[)\]}]|\d{3}|\d[ .-]\d|://|[A-Z]{2} ?\d\d|0x|-----BEGIN|sk-|gh[pousr]_|AIza|AKIA"
    r"|(?i:(?:api|secret)[ _-]?key|access[ _-]?token|bearer)"
)


def identifiers_in(text: str) -> list[str]:
    """The types of identifiers that this scan sees in a text, sorted.

    Args:
        text: any text.
    """
    return sorted({kind for kind, _ in _matches(_normal(text))})


def without_identifiers(text: str, allowed: Iterable[str], placeholder: Callable[[str, str], str]) -> str:
    """A text without what this scan sees in it: in its place, a placeholder.

    Whole words go: of a link, for example, the expressions see the beginning only.

    Args:
        text: any text.
        allowed: types that may stay.
        placeholder: of a type and the words; in it this scan must see nothing.

    Returns:
        the text as it is if there is nothing to replace; otherwise in the form that this scan reads (NFKC).
    """
    plain, kept, changed = _normal(text), frozenset(allowed), False
    while hits := [(match.span(), kind) for kind, match in _matches(plain) if kind not in kept]:
        pieces, at = [], 0
        for (start, end), kind in sorted(hits):
            if start < at:
                continue  # in the words that are replaced already
            start, end = _words(plain, start, end, at)
            pieces += [plain[at:start], placeholder(kind, plain[start:end])]
            at = end
        plain, changed = "".join([*pieces, plain[at:]]), True
    return plain if changed else text


def _words(text: str, start: int, end: int, least: int) -> tuple[int, int]:
    """A stretch of a text made longer, to whole words; it starts at ``least`` or behind it."""
    while start > least and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return start, end


def _normal(text: str) -> str:
    if text.isascii():
        return text
    return _HIDDEN.sub("", _PART.sub(lambda part: unicodedata.normalize("NFKC", part[0]), text))


def _matches(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Identifiers in a normal text, with their types."""
    if _POSSIBLE.search(text) is None:
        return
    for kind, expression, holds in _COMPILED:
        for match in expression.finditer(text):
            if holds(match[0]):
                yield kind, match


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
    elif path.suffix == ".jsonl":
        with path.open("rb") as lines:
            yield from (orjson.loads(line) for line in lines if line.strip())
    elif path.suffix == ".json":
        yield orjson.loads(path.read_bytes())
    else:
        raise OutgoingError(
            f"{path.name}: the outgoing scan reads .parquet, .jsonl and .json; it cannot vouch for this file"
        )


def scan(path: Path, allowed: Iterable[str] = ()) -> list[Hit]:
    """Every identifier in one file.

    Args:
        path: Parquet, JSON Lines or JSON.
        allowed: types that are kept by policy.

    Raises:
        OutgoingError: the file is of another kind.
    """
    kept = frozenset(allowed)
    seen: dict[str, list[str]] = {}  # histories repeat the same turns
    hits = []
    for number, row in enumerate(_rows(path), start=1):
        for field, text in _leaves(row, ""):
            name = field.rpartition(".")[2]
            if name == "user_id":
                types = [] if _HASHED.fullmatch(text) else ["USER_ID"]
            else:
                if text not in seen:
                    seen[text] = identifiers_in(text)
                types = [kind for kind in seen[text] if not name.endswith("_id") or kind in _IN_IDS]
            hits += [Hit(number, field, kind) for kind in types if kind not in kept]
    return hits


def kept_types(policy: Mapping[str, str]) -> list[str]:
    """The types that may leave by ``privacy.policy``."""
    return [kind for kind, action in policy.items() if action == "keep"]


def check(paths: Mapping[str, Path], policy: Mapping[str, str]) -> None:
    """Scan outputs before they appear.

    Args:
        paths: a name for people, and the file or folder.
        policy: ``privacy.policy``: types that are kept may leave.

    Raises:
        OutgoingError: there is a hit in one of them.
    """
    allowed, found = kept_types(policy), []
    for name, path in paths.items():
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        for file in files:
            shown = name if file == path else f"{name}/{file.relative_to(path).as_posix()}"
            found += [f"{shown}: row {hit.row}: {hit.field}: {hit.type}" for hit in scan(file, allowed)]
    if found:
        more = f"\n... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise OutgoingError(
            f"the outgoing scan found {len(found)} identifiers; nothing was written:\n"
            + "\n".join(found[:_SHOWN])
            + more
        )
