"""Columns of a contract as an Arrow schema, and the check that a table has exactly these."""

from pathlib import Path

import pyarrow as pa

from flywheel_tasks.contracts.model import Contract, ContractError

_PLAIN = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),  # any JSON value of a JSON Lines file, as its text
    "timestamp[us, tz=UTC]": pa.timestamp("us", tz="UTC"),
}


def arrow_type(text: str) -> pa.DataType:
    """The Arrow type that a contract names.

    Args:
        text: ``string``, ``int64``, ``double``, ``bool``, ``json``, ``timestamp[us, tz=UTC]``, ``list<type>`` or
            ``struct<name: type, ...>``.

    Raises:
        ValueError: it is none of these.
    """
    if text in _PLAIN:
        return _PLAIN[text]
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(arrow_type(text[5:-1]))
    if text.startswith("struct<") and text.endswith(">"):
        fields = [part.partition(":") for part in _parts(text[7:-1])]
        return pa.struct([(name.strip(), arrow_type(kind.strip())) for name, _, kind in fields])
    raise ValueError(f"unknown type {text!r}; known are {', '.join(_PLAIN)}, list<...> and struct<...>")


def _parts(text: str) -> list[str]:
    """Split at the commas that are inside no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<[") - (character in ">]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def type_name(kind: pa.DataType) -> str:
    """The contract's word for an Arrow type."""
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{item.name}: {type_name(item.type)}' for item in kind)}>"
    return str(kind)


def arrow_schema(contract: Contract) -> pa.Schema:
    """The Arrow schema of a contract's table."""
    return pa.schema([(name, arrow_type(column.type)) for name, column in contract.columns.items()])


def check_schema(contract: Contract, schema: pa.Schema, source: Path) -> None:
    """Check that a table has exactly the contract's columns and types, in any order.

    Args:
        contract: the contract.
        schema: of the table.
        source: where the table is, for the message.

    Raises:
        ContractError: it has not; the message names the columns.
    """
    expected = {(item.name, type_name(item.type)) for item in arrow_schema(contract)}
    found = {(item.name, type_name(item.type)) for item in schema}
    if expected != found:
        wrong = [f"{name}: {kind}" for name, kind in sorted(found - expected)]
        absent = [f"{name}: {kind}" for name, kind in sorted(expected - found)]
        raise ContractError(
            f"{source}: table {contract.table} breaks the rule columns: absent: {', '.join(absent) or 'none'}; "
            f"unexpected: {', '.join(wrong) or 'none'}"
        )
