"""How the events at hand differ from the format: new fields, absent ones, and what looks like a new name.

Nothing here changes data: a probable rename is reported, and takes effect only through the setting ``ingest.rename``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.traffic.events import FIELDS

_NAMES = 50  # unknown fields followed by name
_SHAPED = 400  # values of a field whose shapes are kept
_LOOKED_AT = 16  # of these, from one table
_LEAST_ABSENT = 0.01  # share of rows without a known field from which a new name for it is looked for
_EXCLUSIVE = 0.9  # share of these rows that have the unknown field, and of its rows that are among these
_ALIKE = 0.5  # overlap of the shapes of values, or likeness of the names

_LETTERS, _DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d+")

OTHER = "other"


def shape(value: str) -> str:
    """The form of a value: letters as ``a``, digits as ``9``, runs of them as one (``user-12`` is ``a-9``)."""
    return _DIGITS.sub("9", _LETTERS.sub("a", value[:40]))[:12]


def kind_of(value: Any) -> str:
    """The JSON type of a decoded value."""
    names = {bool: "boolean", str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string")


def _kind_of_column(column: pa.ChunkedArray) -> str:
    kind = column.type
    for test, name in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "number"),
        (pa.types.is_floating, "number"),
        (pa.types.is_list, "array"),
        (pa.types.is_struct, "object"),
    ):
        if test(kind):
            return name
    return "string"


def optional(kind: str) -> list[str]:
    """Fields of an event type that may be absent."""
    return [name for name, of in FIELDS[kind].items() if of == "text?"]


class Profile:
    """Counts of fields, by event type and name.

    Attributes:
        rows: good rows by type.
        present: rows that have an optional field.
        unknown: rows that have a field that the format lacks.
        types: JSON types of these.
        missing: refused lines that lack a required field.
        together: rows that lack a known field and have an unknown one, a string.
        shapes: forms of some values.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.present: Counter[tuple[str, str]] = Counter()
        self.unknown: Counter[tuple[str, str]] = Counter()
        self.types: dict[tuple[str, str], str] = {}
        self.missing: Counter[tuple[str, str]] = Counter()
        self.together: Counter[tuple[str, str, str]] = Counter()
        self.shapes: dict[tuple[str, str], Counter[str]] = {}

    def _name(self, kind: str, name: str) -> str:
        known = (kind, name) in self.unknown or len(self.unknown) < _NAMES
        return name if known else OTHER

    def _shape(self, kind: str, name: str, values: Iterable[Any]) -> None:
        kept = self.shapes.setdefault((kind, name), Counter())
        if (room := _SHAPED - kept.total()) > 0:
            kept.update(shape(value) for value in islice(values, room) if isinstance(value, str))

    def add_table(self, kind: str, rows: pa.Table, extra: Mapping[str, pa.ChunkedArray]) -> None:
        """Count good rows.

        Args:
            kind: their type.
            rows: with the fields of the format.
            extra: the other columns, by name.
        """
        self.rows[kind] += rows.num_rows
        absent = {}
        for name in optional(kind):
            self.present[kind, name] += rows.num_rows - rows[name].null_count
            absent[name] = rows[name].is_null()
        for name in FIELDS[kind]:
            if pa.types.is_string(rows[name].type):
                self._shape(kind, name, _strings(rows[name]))
        for name, column in extra.items():
            count = len(column) - column.null_count
            if not count:
                continue
            name = self._name(kind, name)
            self.unknown[kind, name] += count
            self.types.setdefault((kind, name), _kind_of_column(column))
            if name != OTHER and pa.types.is_string(column.type):
                self._shape(kind, name, _strings(column))
                for known, at in absent.items():
                    both = pc.sum(pc.and_(at, column.is_valid())).as_py() or 0
                    if both:
                        self.together[kind, known, name] += both

    def add_event(self, kind: str, row: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Count one good event; ``extra`` has the fields that the format lacks."""
        self.rows[kind] += 1
        absent = [name for name in optional(kind) if row[name] is None]
        self.present.update((kind, name) for name in optional(kind) if row[name] is not None)
        for name, value in row.items():
            self._shape(kind, name, (value,))
        self._add_extra(kind, absent, extra)

    def _add_extra(self, kind: str, absent: Iterable[str], extra: Mapping[str, Any]) -> None:
        for name, value in sorted(extra.items()):
            name = self._name(kind, name)
            self.unknown[kind, name] += 1
            self.types.setdefault((kind, name), kind_of(value))
            if isinstance(value, str) and name != OTHER:
                self._shape(kind, name, (value,))
                self.together.update((kind, known, name) for known in absent)

    def add_refused(self, event: Mapping[str, Any]) -> None:
        """Count a line that lacks a required field."""
        kind = event.get("type")
        if not isinstance(kind, str) or kind not in FIELDS:
            return
        absent = [name for name, of in FIELDS[kind].items() if name not in event and of != "text?"]
        self.missing.update((kind, name) for name in absent)
        known = {*FIELDS[kind], "type"}
        extra = {name: value for name, value in event.items() if name not in known and value is not None}
        self._add_extra(kind, absent, extra)

    def merge(self, other: "Profile") -> None:
        """Add the counts of another profile."""
        self.rows.update(other.rows)
        self.present.update(other.present)
        self.missing.update(other.missing)
        folded = set()
        for (kind, name), count in other.unknown.items():
            at = kind, self._name(kind, name)
            self.unknown[at] += count
            self.types.setdefault(at, other.types[kind, name])
            if at[1] == OTHER:
                folded.add((kind, name))
        # Of fields that are counted together nothing more is known, as when they are read.
        for (kind, known, name), count in other.together.items():
            if (kind, name) not in folded:
                self.together[kind, known, name] += count
        for at, shapes in other.shapes.items():
            if at not in folded:
                self.shapes.setdefault(at, Counter()).update(shapes)

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        return {
            "rows": dict(self.rows),
            "types": [[*at, of] for at, of in self.types.items()],
            "shapes": [[*at, dict(shapes)] for at, shapes in self.shapes.items()],
            **{
                name: [[*at, count] for at, count in getattr(self, name).items()]
                for name in ("present", "unknown", "missing", "together")
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Profile":
        """The profile of :meth:`to_json`."""
        profile = cls()
        profile.rows.update(document["rows"])
        profile.types = {(kind, name): of for kind, name, of in document["types"]}
        profile.shapes = {(kind, name): Counter(shapes) for kind, name, shapes in document["shapes"]}
        for name in ("present", "unknown", "missing", "together"):
            getattr(profile, name).update({tuple(at): count for *at, count in document[name]})
        return profile

    def report(self) -> dict[str, Any]:
        """What differs, by ``type.field``.

        ``new``: share of the type's good rows that have the field, and its JSON type. ``never``: 1 for an optional
        field that no row has. ``missing``: share of the type's events that were refused for lack of a field.
        ``probable_rename``: share of events without the known field, and how alike values (or names) are.
        """
        new = {
            f"{kind}.{name}": {"share": count / max(self._events(kind), 1), "type": self.types[kind, name]}
            for (kind, name), count in sorted(self.unknown.items())
        }
        never = {
            f"{kind}.{name}": 1
            for kind in sorted(self.rows)
            for name in optional(kind)
            if self.rows[kind] and not self.present[kind, name]
        }
        missing = {
            f"{kind}.{name}": n / self._events(kind) for (kind, name), n in sorted(self.missing.items())
        }
        return {"new": new, "never": never, "missing": missing, "probable_rename": dict(self._renames())}

    def _events(self, kind: str) -> int:
        """Good rows and refused lines without a field (the most frequent one) of a type."""
        return self.rows[kind] + max((n for (of, _), n in self.missing.items() if of == kind), default=0)

    def _renames(self) -> Iterator[tuple[str, dict[str, float]]]:
        for (kind, known, name), both in sorted(self.together.items()):
            if known in optional(kind):
                absent = self.rows[kind] - self.present[kind, known]
            else:
                absent = self.missing[kind, known]
            share = absent / self._events(kind)
            exclusive = min(both / absent, both / self.unknown[kind, name])
            alike = self._alike(kind, known, name)
            if share >= _LEAST_ABSENT and exclusive >= _EXCLUSIVE and alike >= _ALIKE:
                yield f"{kind}.{name} for {known}", {"share": share, "alike": alike}

    def _alike(self, kind: str, known: str, name: str) -> float:
        """Overlap of the two fields' shapes; of the names where the known field has no value."""
        before, after = (self.shapes.get((kind, field), Counter()) for field in (known, name))
        if not before:
            return SequenceMatcher(None, known, name).ratio()
        shared = {form: min(before[form] / before.total(), after[form] / after.total()) for form in after}
        return float(np.clip(sum(shared.values()), 0.0, 1.0))


def _strings(column: pa.ChunkedArray) -> list[str]:
    """Some values that are not null, from the start of the column."""
    return column.slice(0, 64 * _LOOKED_AT).drop_null().slice(0, _LOOKED_AT).to_pylist()
