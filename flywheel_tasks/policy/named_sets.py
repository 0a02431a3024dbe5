"""Named sets, ``sets/<name>.jsonl``: replies that a team wants said, for SFT, and worse ones beside them, for DPO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import orjson

from flywheel_tasks.chat.card import Card
from flywheel_tasks.chat.fields import FieldError, card_of, id_of
from flywheel_tasks.policy.prompts import Prompt, PromptError, prompt_of
from flywheel_tasks.policy.sft_data import Example
from flywheel_tasks.policy.tool_calls import ToolCallError, Trigger, parse
from flywheel_tasks.privacy.outgoing import OutgoingError
from flywheel_tasks.privacy.said import identifiers_said
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.settings import Privacy
from flywheel_tasks.storage.documents import numbered_lines

_TRIGGERS: tuple[str, ...] = get_args(Trigger)


def load_set(path: Path) -> list[Example]:
    """Read a named set (see ``sets/README.md``); its examples' ``mix`` is the file's name.

    Raises:
        PromptError: a line is no such row, a field of it has not its type, an id repeats, a tool call is not well
            formed, or a rejected reply is empty or the reply itself.
    """
    found: dict[str, Example] = {}
    for number, line in numbered_lines(path.read_bytes().splitlines()):
        where = f"{path}:{number}"
        example = _example(line, path.stem, where)
        if example.prompt.prompt_id in found:
            raise PromptError(f"{where}: id {example.prompt.prompt_id} repeats")
        found[example.prompt.prompt_id] = example
    return [found[key] for key in sorted(found)]


def _example(line: bytes, mix: str, where: str) -> Example:
    try:
        row: dict[str, Any] = orjson.loads(line)
        card = card_of(row["card"], "set")
        row["card"]["traits"], row["card"]["instructions"]  # must be there, if only empty
        reply = row["reply"].strip()
        rejected = row["rejected"].strip() if row.get("rejected") is not None else None
        prompt = _prompt(row, card, where)
    except FieldError as error:
        raise PromptError(f"{where}: {error}") from error
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(f"{where}: not a row of a set ({type(error).__name__}: {error})") from error
    if not reply:
        raise PromptError(f"{where}: reply is empty")
    if rejected in ("", reply):
        raise PromptError(f"{where}: rejected is {'the reply itself' if rejected else 'empty'}")
    try:
        called = parse(reply) is not None
    except ToolCallError as error:
        raise PromptError(f"{where}: {error}") from error
    if row.get("trigger", "none") not in _TRIGGERS:
        raise PromptError(f"{where}: trigger is {row['trigger']!r}, none of {', '.join(_TRIGGERS)}")
    if "trigger" in row and called != (row["trigger"] in ("explicit", "implicit")):
        raise PromptError(
            f"{where}: trigger is {row['trigger']}, but the reply {'calls' if called else 'does not call'}"
        )
    return Example(mix, prompt, reply, rejected)


def _prompt(row: Mapping[str, Any], card: Card, where: str) -> Prompt:
    prompt_id = str(id_of(row["id"]))
    return prompt_of({"prompt_id": prompt_id, "source": "set", "history": row["history"]}, card, where)


def read_sets(folder: Path, names: Sequence[str]) -> dict[str, list[Example]]:
    """The named sets of a folder, their form checked.

    Args:
        folder: of ``<name>.jsonl`` files.
        names: which.

    Raises:
        PromptError: one is missing or has a bad row.
    """
    for name in names:
        if not (folder / f"{name}.jsonl").exists():
            raise PromptError(f"{folder / name}.jsonl: no such set, but params.yaml names it")
    return {name: load_set(folder / f"{name}.jsonl") for name in names}


def load_sets(folder: Path, names: Sequence[str], privacy: Privacy) -> dict[str, list[Example]]:
    """:func:`read_sets`, looked at for identifiers.

    People write them, perhaps from what went wrong in production, so both scans look at them before they are learned.

    Args:
        folder: of ``<name>.jsonl`` files.
        names: which.
        privacy: the section ``privacy``.

    Raises:
        PromptError: one is missing or has a bad row.
        OutgoingError: one holds an identifier that may not be learned.
    """
    found = read_sets(folder, names)
    texts = [
        (f"{folder.name}/{name}.jsonl: {example.prompt.prompt_id}: {field}", text)
        for name, examples in found.items()
        for example in examples
        for field, text in _texts(example)
    ]
    characters = {example.prompt.card.name for examples in found.values() for example in examples}
    said = identifiers_said((text for _, text in texts), privacy, characters)
    if hits := [f"{where}: {said[text]}" for where, text in texts if text in said]:
        raise OutgoingError("identifiers that may not be learned:\n" + "\n".join(hits))
    return found


def _texts(example: Example) -> list[tuple[str, str]]:
    """What a row says, and in which field."""
    card = example.prompt.card
    texts = [(f"history[{k}]", turn["content"]) for k, turn in enumerate(example.prompt.history)]
    texts += [("card", text) for text in (*card.traits, *card.instructions)]
    return [*texts, ("reply", example.reply), ("rejected", example.rejected or "")]


def pairs_of(examples: Sequence[Example]) -> list[Pair]:
    """The rows of a named set that have a rejected reply, as preference pairs, in their order."""
    return [
        Pair(
            pair_id=f"{example.mix}/{example.prompt.prompt_id}",
            prompt_id=f"{example.mix}/{example.prompt.prompt_id}",
            user_id="",
            card=example.prompt.card,
            history=example.prompt.history,
            chosen=example.reply,
            rejected=example.rejected,
            kind="set",
        )
        for example in examples
        if example.rejected is not None
    ]
