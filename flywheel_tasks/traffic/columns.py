"""Many events at once: rows that are plainly good, as columns; every other one is left to the exact parser.

:mod:`flywheel_tasks.traffic.events` defines what a good event is. What is accepted here, it accepts with the same row;
what is not accepted here, it decides. So this module may be strict, but never lenient.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from flywheel_tasks.traffic.drift import Profile
from flywheel_tasks.traffic.events import FIELDS
from flywheel_tasks.traffic.schemas import TABLES, TIME

# Types whose events come in numbers; cards are few, and have lists.
FAST = {"message": "messages", "signal": "signals", "exposure": "exposures"}
_STRINGS = ["type", *dict.fromkeys(name for kind in FAST for name in FIELDS[kind])]
_PIECES = 8  # that a block with an unusual line is cut into
_LEAST_LINES = 64  # of a piece: fewer are not worth a try
_BRACKETS = 200  # in a line; the readers of nested values recurse
_LONG = 1 << 16  # bytes: longer lines may have any number of fields
_SAMPLE = 64  # lines that are looked at for fields of which each has another name
_ONCE = 8  # fields that occur in one line of the sample only, at most
_OPEN, _CLOSE, _NEWLINE, _RETURN, _SQUARE = b"{}\n\r["
_FORM = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][0-2][0-9]:[0-5][0-9])$"
# Years that time zones cannot push out of range.
_EARLIEST, _LATEST = (
    np.datetime64("0001-01-03", "us").astype(int),
    np.datetime64("9999-12-29", "us").astype(int),
)


@dataclass
class Taken:
    """What became of some rows.

    Attributes:
        tables: accepted rows by event type, with their line numbers in the column ``line``.
        rest: positions of the rows that are for the exact parser.
        renamed: rows whose field had an old name, by that name.
        profile: fields seen.
    """

    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    rest: list[int] = field(default_factory=list)
    renamed: Counter[str] = field(default_factory=Counter)
    profile: Profile = field(default_factory=Profile)


def _times(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Times as timestamps, and which rows are surely good; the others hold anything."""
    if pa.types.is_timestamp(column.type):
        good = np.full(len(column), column.type.tz is not None)
    else:
        # Only this form is read here; the exact parser knows all of ISO 8601.
        good = pc.match_substring_regex(column, _FORM).fill_null(False).to_numpy()
        if not good.all():
            column = pc.if_else(pa.chunked_array([pa.array(good)]), column, None)
    try:
        times = pc.cast(column, TIME)
    except pa.ArrowInvalid:  # no such day, or finer than a microsecond
        return pa.chunked_array([pa.nulls(len(column), TIME)]), np.zeros(len(column), bool)
    number = times.cast(pa.int64()).fill_null(0).to_numpy()
    valid = times.is_valid().to_numpy()
    return times, good & valid & (number > _EARLIEST) & (number < _LATEST)


def _good(rows: Mapping[str, pa.ChunkedArray], kind: str) -> np.ndarray:
    """Rows whose fields are all as they should be, but for the time."""
    good = np.ones(len(rows["type"]), bool)
    for name, of in FIELDS[kind].items():
        if of == "text?" or name == "time":
            continue
        column = rows[name]
        if column.null_count:
            good &= column.is_valid().to_numpy()
        if of == "id":
            good &= pc.greater(pc.binary_length(column), 0).fill_null(False).to_numpy()
        elif isinstance(of, tuple):
            good &= pc.is_in(column, value_set=pa.array(of[1])).to_numpy()
    return good


def take_rows(
    table: pa.Table,
    lines: np.ndarray,
    positions: np.ndarray,
    rename: Mapping[str, str],
    beyond: Collection[str] = (),
) -> Taken:
    """Accept the rows that are plainly good.

    Args:
        table: a column a field; those of the format are strings (time: or a timestamp), null where absent.
        lines: line number of each row.
        positions: of each row, for ``rest``.
        rename: old field names to new ones.
        beyond: fields that the format does not have, and that the accepted rows keep where the table has them.
    """
    taken = Taken()
    left = np.ones(table.num_rows, bool)
    columns = {name: table[name] for name in table.column_names}
    columns, was_renamed = _rename(columns, rename)
    for kind in FAST:
        at = pc.equal(columns["type"], kind).fill_null(False).to_numpy()
        rows = columns if at.all() else _pick(columns, at)
        if not len(rows["type"]):
            continue
        times, good = _times(rows["time"])
        good = good & _good(rows, kind)
        where = np.flatnonzero(at)[good]
        if not len(where):
            continue
        rows = {**rows, "time": times}
        rows = rows if good.all() else _pick(rows, good)
        schema = TABLES[FAST[kind]]
        extra = {name: column for name, column in rows.items() if name not in FIELDS[kind] and name != "type"}
        accepted = pa.Table.from_arrays([rows[name] for name in schema.names], schema=schema)
        taken.profile.add_table(kind, accepted, extra)
        accepted = accepted.append_column("line", pa.array(lines[where]))
        for name in (name for name in beyond if name in extra):
            accepted = accepted.append_column(name, extra[name])
        taken.tables[kind] = [accepted]
        for old, used in was_renamed.items():
            if rename[old] in FIELDS[kind] or rename[old] == "type":
                taken.renamed[old] += int(used[where].sum())
        left[where] = False
    taken.rest = positions[left].tolist()
    return taken


def _pick(columns: Mapping[str, pa.ChunkedArray], at: np.ndarray) -> dict[str, pa.ChunkedArray]:
    mask = pa.array(at)
    # A column without any value costs nothing to make anew.
    return {
        name: column.filter(mask) if column.null_count < len(column) else column.slice(0, int(at.sum()))
        for name, column in columns.items()
    }


def _rename(
    columns: dict[str, pa.ChunkedArray], rename: Mapping[str, str]
) -> tuple[dict[str, pa.ChunkedArray], dict[str, np.ndarray]]:
    """Columns with old names merged into the new ones, and the rows where that made a difference."""
    used = {}
    for old, new in rename.items():
        if old not in columns or new not in columns:
            continue
        use = pc.and_(columns[new].is_null(), columns[old].is_valid())
        used[old] = use.to_numpy()
        columns = {**columns, new: pc.coalesce(columns[new], columns[old])}
        columns[old] = pc.if_else(use, pa.scalar(None, columns[old].type), columns[old])
    return columns, used


class LineReader:
    """Reads blocks of JSON lines.

    Args:
        max_bytes: of a line; longer ones are left to the exact parser.
        rename: old field names to new ones, of fields that are strings.
        beyond: fields as in :func:`take_rows`, and their types; a line with a value of another type is left to the
            exact parser.
    """

    def __init__(
        self, max_bytes: int, rename: Mapping[str, str], beyond: Mapping[str, pa.DataType] | None = None
    ) -> None:
        self._max_bytes, self._rename, self._beyond = max_bytes, rename, beyond or {}
        names = dict.fromkeys([*_STRINGS, *(old for old, new in rename.items() if new in _STRINGS)])
        self._schema = pa.schema([*((name, pa.string()) for name in names), *self._beyond.items()])

    def read(self, data: bytes, first: int) -> Taken:
        """Accept what is plainly good of some lines.

        Args:
            data: whole lines, each with a line end.
            first: number of the first line.

        Returns:
            rows; ``rest`` counts lines from 0.
        """
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        usual = self._usual(np.frombuffer(data, np.uint8), starts, ends)
        if usual.all():
            whole, at = data, np.arange(len(ends))
        else:
            at = np.flatnonzero(usual)
            whole = b"".join(data[starts[k] : ends[k] + 1] for k in at)
        total = Taken(rest=np.flatnonzero(~usual).tolist())
        for taken in self._attempt(whole, at, first):
            for kind, tables in taken.tables.items():
                total.tables.setdefault(kind, []).extend(tables)
            total.rest += taken.rest
            total.renamed.update(taken.renamed)
            total.profile.merge(taken.profile)
        total.rest.sort()
        return total

    def _usual(self, text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Lines that start and end as one object does, are not too long and not deeply nested."""
        length = ends - starts
        last = text[np.maximum(ends - 1, 0)]
        before = text[np.maximum(ends - 2, 0)]
        closed = (last == _CLOSE) | ((last == _RETURN) & (before == _CLOSE) & (length > 2))
        usual = (length > 1) & (length <= min(self._max_bytes, _LONG)) & (text[starts] == _OPEN) & closed
        brackets = np.flatnonzero((text == _OPEN) | (text == _SQUARE))
        if len(brackets) > len(ends) + _BRACKETS:  # fewer cannot be too many in one line
            usual &= np.bincount(np.searchsorted(ends, brackets), minlength=len(ends)) <= _BRACKETS
        return usual

    def _attempt(self, data: bytes, at: np.ndarray, first: int) -> Iterator[Taken]:
        """Read lines together; if one of them is unusual, in smaller and smaller pieces."""
        if not len(at):
            return
        table = self._parse(data, len(at))
        if table is not None:
            yield take_rows(table, at + first, at, self._rename, self._beyond)
        elif len(at) < _LEAST_LINES:
            yield Taken(rest=at.tolist())
        else:
            lines = data.split(b"\n")[:-1]
            size = -(-len(lines) // _PIECES)
            for k in range(0, len(lines), size):
                yield from self._attempt(b"\n".join(lines[k : k + size]) + b"\n", at[k : k + size], first)

    def _parse(self, data: bytes, lines: int) -> pa.Table | None:
        """The lines as a table, or None if they cannot be read together exactly as one by one."""
        if b"NaN" in data or b"Inf" in data or not _is_utf8(data):
            return None  # Arrow takes NaN and Infinity for numbers
        for unknown in ("error", "infer"):
            if unknown == "infer" and _open_ended(data):
                return None
            try:
                table = pj.read_json(
                    BytesIO(data),
                    pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                    pj.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior=unknown),
                )
            except (pa.ArrowException, UnicodeDecodeError) as error:
                if unknown == "error" and "nexpected field" in str(error):
                    continue
                return None
            # Every line starts with { and ends with }, and no newline is inside a value: as many objects as
            # lines means one a line.
            return table if table.num_rows == lines else None
        return None


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    whole = pa.array([data], pa.binary())
    try:
        whole.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _names(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from _names(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner, (*path, ""))


def _open_ended(data: bytes) -> bool:
    """Whether fields have ever new names (ids as keys, for example): a column for each would be too many."""
    lines = data.split(b"\n")[:-1]
    seen: Counter[tuple[str, ...]] = Counter()
    for line in lines[:: max(1, len(lines) // _SAMPLE)]:
        try:
            seen.update(set(_names(orjson.loads(line))))
        except orjson.JSONDecodeError:
            continue
    return sum(count == 1 for count in seen.values()) > _ONCE
