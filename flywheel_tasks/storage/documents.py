"""JSON, JSON Lines and checked YAML files. NaN and infinity have no JSON form: they are written as null."""

import math
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.fast_yaml import load_yaml

Model = TypeVar("Model", bound=BaseModel)


class DocumentError(ValueError):
    """A file is not the JSON it should be; the message names the file and the line."""


def finite(value: Any) -> Any:
    """Replace every non-finite number in a nested value by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(value: Any, path: Path) -> None:
    """Write one JSON document, keys sorted, atomically."""
    options = (
        orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(orjson.dumps(finite(value), option=options))


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        DocumentError: the file is not JSON.
    """
    try:
        return orjson.loads(path.read_bytes().removeprefix(BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise DocumentError(f"{path}: not JSON: {error}") from error


def json_flaw(error: orjson.JSONDecodeError) -> str:
    """What keeps a line of a file from being JSON: the parser's words without its line, which is always the first."""
    return f"{error.msg} at column {error.colno}"


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write JSON Lines atomically, one row a line."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(finite(row), option=orjson.OPT_APPEND_NEWLINE))


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that hold something, with their numbers from 1.

    Args:
        lines: of a file; a byte order mark, which some editors write before the first, is no part of it.
    """
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(BOM_UTF8) if number == 1 else line
        if text.strip():
            yield number, text


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file.

    Raises:
        DocumentError: a line is not a JSON object; the message names it.
    """
    for _, row in read_numbered(path):
        yield row


def read_numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a JSON Lines file with their line numbers; errors as :func:`read_jsonl`."""
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DocumentError(f"{path}:{number}: not JSON: {json_flaw(error)}") from error
            if not isinstance(row, dict):
                raise DocumentError(f"{path}:{number}: not a JSON object")
            yield number, row


def read_yaml(path: Path, model: type[Model], error: type[Exception]) -> Model:
    """Read a YAML file that a pydantic model describes.

    Args:
        path: the file.
        model: what it must be.
        error: raised, with the file and the keys, where the file is missing, is not YAML, or breaks the model.
    """
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file") from cause
    except yaml.YAMLError as cause:
        raise error(f"{path}: not YAML: {cause}") from cause
    try:
        return model.model_validate(raw)
    except ValidationError as cause:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in cause.errors()]
        raise error("\n".join(lines)) from cause
