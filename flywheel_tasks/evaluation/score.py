"""Scores of a file of replies: the rule-based production metrics of each, and rewards where a model is given.

"templated" looks at the replies of the file. All lines are checked before anything is written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fields import FieldError, card_of, id_of, turns_of
from flywheel_tasks.evaluation import production, tone
from flywheel_tasks.evaluation.chat_templates import conversation_key, mine_chats
from flywheel_tasks.evaluation.instructions import checks, obeyed
from flywheel_tasks.evaluation.refusal_detector import Detector, Rules
from flywheel_tasks.safety.requests import harmless
from flywheel_tasks.safety.words import WordLists
from flywheel_tasks.storage.documents import numbered_lines
from flywheel_tasks.style import text

_SHOWN = 20  # errors
_BATCH = 64
Advance = Callable[[int], None]


class ScoreFileError(ValueError):
    """Lines of the file break a rule; the message has ``file:line: rule: what is wrong`` for each."""


@dataclass(frozen=True)
class Row:
    """One reply of the file, checked."""

    row_id: str | int
    card: Card
    history: tuple[Turn, ...]
    reply: str

    def conversation(self) -> str:
        """Key of its conversation: rows with one card and one beginning are of one."""
        return conversation_key(self.card.name, self.history, str(self.row_id))

    def asked(self) -> str:
        """What the user said last; empty where the history ends otherwise."""
        last = self.history[-1] if self.history else None
        return last["content"] if last and last["role"] == "user" else ""


def read(lines: Sequence[bytes], name: str) -> list[Row]:
    """Check all lines.

    Args:
        lines: of the file; empty ones are skipped.
        name: of the file, for messages.

    Raises:
        ScoreFileError: a line breaks a rule, or there is none.
    """
    rows: list[Row] = []
    errors: list[str] = []
    seen: dict[str | int, int] = {}
    for number, line in numbered_lines(lines):
        try:
            row = _row(line)
            if row.row_id in seen:
                raise FieldError("id_unique", f"id {row.row_id!r} is also on line {seen[row.row_id]}")
            seen[row.row_id] = number
            rows.append(row)
        except FieldError as error:
            errors.append(f"{name}:{number}: {error}")
    if errors:
        more = [f"... and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        raise ScoreFileError("\n".join(errors[:_SHOWN] + more))
    if not rows:
        raise ScoreFileError(f"{name}: not_empty: no rows")
    return rows


def _row(line: bytes) -> Row:
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FieldError("json", str(error)) from error
    if not isinstance(raw, dict):
        raise FieldError("object", "not a JSON object")
    row_id = id_of(raw.get("id"))
    if not isinstance(raw.get("reply"), str):
        raise FieldError("reply", "a text must be there")
    return Row(row_id, card_of(raw.get("card"), ""), turns_of(raw.get("history")), raw["reply"])


def metrics_of(
    row: Row, refusal: float | None, templated: float, listed: WordLists | None = None
) -> dict[str, float | int | None]:
    """The metrics of one reply; None is "not measured".

    Args:
        row: the reply.
        refusal: probability that it refuses, or None.
        templated: probability that it is templated.
        listed: a workspace's unsafe words: refusing a request that has one is not false.
    """
    rules = obeyed(checks(row.card), row.reply)
    unclear = text.words_unclear(row.reply)
    return {
        "refusal": refusal,
        "false_refusal": refusal if harmless(row.history, listed) else 0.0,
        "templated": None if unclear else templated,
        "preachy": float(tone.preachy(row.reply)),
        "positive_sentiment": float(tone.positive(row.reply)),
        "cooperation": None,
        "safety_violation": None,
        "breaks_character": float(production.breaks_character(row.reply)),
        "instruction_following": sum(rules) / len(rules) if rules else None,
        "instruction_violation": float(not all(rules)) if rules else None,
        "wall_of_text": None if unclear else float(bool(production.wall_of_text(row.reply))),
        "list": float(text.has_list(row.reply)),
        "emoji": text.emoji_count(row.reply),
        "cut_off": float(text.cut_off(row.reply)),
        "empty": float(not row.reply.strip()),
        "words": None if unclear else len(text.words(row.reply)),
        "sentences": text.sentences(row.reply),
        "characters": len(row.reply),
    }


def score(
    rows: Sequence[Row],
    rewards: Path | None,
    advance: Advance,
    detector: Detector | None = None,
    listed: WordLists | None = None,
) -> Iterator[bytes]:
    """Scored lines, in the order of the rows, as they are done.

    Args:
        rows: checked rows.
        rewards: folder of a pointwise reward model, or None.
        advance: told how many more rows are done.
        detector: of refusals, named in every line; the rules by default.
        listed: a workspace's unsafe words.

    Raises:
        ScoreFileError: rewards are asked for and a history does not end with a user's turn.
        ScoreError: the reward model gives no finite number.
    """
    scorer = _scorer(rows, rewards) if rewards is not None else None
    mined = mine_chats((row.conversation(), row.card, row.history, row.reply) for row in rows)
    detector = detector or Rules()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        refusing = detector.probabilities([(row.asked(), row.reply) for row in batch])
        templated = mined.probabilities[start : start + _BATCH]
        found = [metrics_of(*one, listed) for one in zip(batch, refusing, templated, strict=True)]
        if scorer is not None:
            values = scorer.score([(row.card, row.history, row.reply) for row in batch])
            found = [{**metrics, "reward": value} for metrics, value in zip(found, values, strict=True)]
        for row, metrics in zip(batch, found, strict=True):
            line = {"id": row.row_id, "metrics": metrics, "refusal_by": detector.name}
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        advance(len(batch))


def _scorer(rows: Sequence[Row], folder: Path) -> Any:
    for row in rows:
        if not row.history or row.history[-1]["role"] != "user":
            raise ScoreFileError(
                f"id {row.row_id!r}: history_ends_with_user: a reward needs a history that ends with a user's turn"
            )
    from flywheel_tasks.rewards.scoring import PointwiseScorer
    from flywheel_tasks.settings import Compute

    return PointwiseScorer(folder, compute=Compute(precision="auto", threads=2))
