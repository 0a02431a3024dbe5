"""What is done about identifiers in prompts: replace, drop or keep, by type.

A replaced identifier becomes a placeholder such as ``[EMAIL_1]``. The same one, however it is spelled, has the same
placeholder all through a conversation: they are numbered in the order in which the conversation first says them, so
the numbers come out the same in every run, and no identifier needs to be stored for that.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.privacy.outgoing import identifiers_in, kept_types, without_identifiers
from flywheel_tasks.privacy.types import TYPES, Finding, fictional

Row = dict[str, Any]
Policy = Mapping[str, str]


class Protected(NamedTuple):
    """Prompts after the policy.

    Attributes:
        rows: all prompts in the order given, identifiers replaced.
        reasons: of prompts to drop: prompt id to reason (``privacy:CARD``) and where; never the text.
        counts: by type: ``action``, ``identifiers`` (distinct within their conversations) and ``prompts`` with one.
    """

    rows: list[Row]
    reasons: dict[str, tuple[str, str]]
    counts: dict[str, dict[str, Any]]


class Placeholders:
    """Numbers the identifiers of one conversation, or of one card."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = defaultdict(dict)

    def of(self, finding: Finding) -> str:
        """The placeholder of an identifier."""
        known = self._numbers[finding.type]
        return f"[{finding.type}_{known.setdefault(finding.value, len(known) + 1)}]"


class Conversations:
    """What is known of the identifiers of conversations, so that one can be protected in several parts.

    Attributes:
        placeholders: by conversation.
        seen: conversation, type and value of each identifier.
    """

    def __init__(self) -> None:
        self.placeholders: dict[str, Placeholders] = defaultdict(Placeholders)
        self.seen: set[tuple[str, str, str]] = set()

    def keep(self, conversation: str) -> None:
        """Forget all conversations but one, which may go on."""
        self.placeholders = defaultdict(
            Placeholders, {name: of for name, of in self.placeholders.items() if name == conversation}
        )
        self.seen = {entry for entry in self.seen if entry[0] == conversation}


def replace(text: str, findings: Sequence[Finding], placeholders: Placeholders) -> str:
    """A text with findings replaced.

    Args:
        text: as it was given to the detector.
        findings: of it, in order, without overlaps.
        placeholders: of its conversation.
    """
    pieces, at = [], 0
    for finding in findings:
        pieces += [text[at : finding.start], placeholders.of(finding)]
        at = finding.end
    return "".join([*pieces, text[at:]])


def _turns(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where and what: every text of a prompt."""
    for number, turn in enumerate(row["history"]):
        yield f"turn {number} of the history", turn["content"]
    if row["reply"]:
        yield "the reply", row["reply"]


def protect(
    rows: Sequence[Row],
    detector: Detector,
    policy: Policy,
    *,
    characters: Sequence[str] = (),
    before: Conversations | None = None,
) -> Protected:
    """Apply the policy to prompts: to every turn of their histories, whoever speaks, and to their replies.

    Args:
        rows: prompts (``prompt_id``, ``conversation_id``, ``turn``, ``history``, ``reply``).
        detector: finds identifiers.
        policy: what to do about each type.
        characters: names of characters, which are nobody's.
        before: of conversations that go on with these rows; is brought up to date. An identifier that is known from
            there keeps its placeholder, and is not counted again.
    """
    before = before or Conversations()
    found = detector.find_all(text for row in rows for _, text in _turns(row))
    nobodys = fictional(characters)
    found = {
        text: [hit for hit in hits if not (hit.type == "NAME" and hit.value in nobodys)]
        for text, hits in found.items()
    }
    identifiers = dict.fromkeys(TYPES, 0)
    prompts: dict[str, set[str]] = {kind: set() for kind in TYPES}
    reasons: dict[str, tuple[str, str]] = {}
    texts: dict[str, dict[str, str]] = {}
    # In the order of the talk, so that the numbers do not depend on the order of the rows.
    for row in sorted(rows, key=lambda row: (row["conversation_id"], row["turn"], row["prompt_id"])):
        changed = texts[row["prompt_id"]] = {}
        for where, text in _turns(row):
            for hit in found[text]:
                entry = (row["conversation_id"], hit.type, hit.value)
                identifiers[hit.type] += entry not in before.seen
                before.seen.add(entry)
                prompts[hit.type].add(row["prompt_id"])
                if policy[hit.type] == "drop":
                    reasons.setdefault(row["prompt_id"], (f"privacy:{hit.type}", f"in {where}"))
            to_replace = [hit for hit in found[text] if policy[hit.type] == "replace"]
            if to_replace:
                changed[text] = replace(text, to_replace, before.placeholders[row["conversation_id"]])
    counts = {
        kind: {"action": policy[kind], "identifiers": identifiers[kind], "prompts": len(prompts[kind])}
        for kind in TYPES
    }
    return Protected([_rewritten(row, texts[row["prompt_id"]]) for row in rows], reasons, counts)


def _rewritten(row: Row, changed: Mapping[str, str]) -> Row:
    if not changed:
        return row
    history = [{**turn, "content": changed.get(turn["content"], turn["content"])} for turn in row["history"]]
    return {**row, "history": history, "reply": changed.get(row["reply"], row["reply"])}


def still_identified(rows: Sequence[Row], policy: Policy) -> dict[str, tuple[str, str]]:
    """Prompts in which the outgoing scan sees what the detector let through: it costs a prompt, not the generation.

    Args:
        rows: prompts, as :func:`protect` leaves them.
        policy: what to do about each type; a type that is not kept is a reason to drop the prompt.

    Returns:
        prompt id to reason (``privacy:EMAIL``) and where; never the text.
    """
    kept = frozenset(kept_types(policy))
    seen: dict[str, str | None] = {}  # histories repeat the same turns
    reasons: dict[str, tuple[str, str]] = {}
    for row in rows:
        # The table of duplicates shows the last two turns in one line, which may join the halves of a number.
        last = " ".join(" ".join(turn["content"] for turn in row["history"][-2:]).split())
        for where, text in (*_turns(row), ("the last turns together", last)):
            if text not in seen:
                seen[text] = next((kind for kind in identifiers_in(text) if kind not in kept), None)
            if (kind := seen[text]) is not None:
                reasons.setdefault(row["prompt_id"], (f"privacy:{kind}", f"in {where}, by the outgoing scan"))
    return reasons


def protect_card(card: Row, detector: Detector, policy: Policy) -> Row:
    """A card without identifiers: whatever the policy does not keep is replaced, for a card cannot be dropped.

    So is what the detector lets through and the outgoing scan sees, for it would stop the generation.

    Args:
        card: ``name``, ``traits``, ``instructions``.
        detector: finds identifiers.
        policy: what to do about each type. Names are left: they are the character's.
    """
    placeholders, kept = Placeholders(), kept_types(policy)

    def unseen(kind: str, words: str) -> str:
        return placeholders.of(Finding(0, len(words), kind, words))

    def clean(text: str) -> str:
        hits = [hit for hit in detector.find(text) if policy[hit.type] != "keep" and hit.type != "NAME"]
        return without_identifiers(replace(text, hits, placeholders), kept, unseen)

    return {
        **card,
        "name": clean(card["name"]),
        "traits": [clean(text) for text in card["traits"]],
        "instructions": [clean(text) for text in card["instructions"]],
    }
