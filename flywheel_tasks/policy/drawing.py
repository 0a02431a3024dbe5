"""Replies of a policy to many prompts, resumably.

Prompts of similar length go through a policy in chunks, and each chunk's replies are written to a journal as soon as it
is done. The seed of a chunk depends on the policy and the chunk only, so a run that was killed and goes on gives the
replies of one that was not. A remote policy's chunks are single prompts, so that nothing is paid for twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.policy.pool import Chat, Chunk, Policy, PoolError
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.training.progress import Meter

_UNANSWERED = 0.05  # of the prompts may go without an answer, and one may in any case, but not all


def draw(
    policy: Policy, prompts: Sequence[Chat], n: int, seed: int, journal: Path | None = None, say: bool = True
) -> list[list[Reply]]:
    """Draw ``n`` replies to each prompt from one policy.

    Args:
        policy: who answers.
        prompts: cards and histories that end with a user's turn.
        n: replies a prompt.
        seed: of the draw.
        journal: folder where finished chunks are kept for a run that goes on; the caller removes it. It must belong
            to exactly these prompts, settings and seed (:meth:`flywheel_tasks.pipeline.stage_io.StageIO.resume_dir`).
        say: print progress.

    Returns:
        for each prompt, in the order given, its replies; some may be empty.

    Raises:
        PoolError: a remote policy gives no answer to too many prompts. The others' replies are in the journal.
        EndpointError: see :meth:`flywheel_tasks.policy.endpoint.ChatEndpoint.draw`.
    """
    if not prompts:
        return []
    lengths = policy.lengths(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    size = policy.chunk(n)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    path = journal / f"{policy.name}.jsonl" if journal is not None else None
    done = _read_journal(path)
    meter = Meter(f"Candidates of {policy.policy_id}" if say else None, len(prompts), "prompts")
    meter.advance(sum(len(parts[number]) for number in done))
    left = [
        Chunk(number, [prompts[i] for i in positions], _seed(seed, policy.name, number))
        for number, positions in enumerate(parts)
        if number not in done
    ]
    for number, found in policy.draw(left, n) if left else ():
        if not _problems(found):  # or it would stay so when the server's settings are put right
            _append(path, {"chunk": number, "replies": found})
        done[number] = found
        meter.advance(len(found))
    policy.release()
    replies: list[list[Reply]] = [[] for _ in prompts]
    for number, positions in enumerate(parts):
        for position, texts in zip(positions, done[number], strict=True):
            replies[position] = texts
    _check_answered(policy, replies)
    return replies


def _problems(replies: Sequence[Sequence[Reply]]) -> list[str]:
    """Why prompts have no answer: one reason of each."""
    reasons = [[one.unanswered for one in of_prompt if one.unanswered is not None] for of_prompt in replies]
    return [found[0] for found in reasons if found]


def unanswered(replies: Sequence[Sequence[Reply]]) -> int:
    """How many prompts a remote policy gave no answer to, or fewer replies than asked for."""
    return len(_problems(replies))


def _check_answered(policy: Policy, replies: Sequence[Sequence[Reply]]) -> None:
    problems = _problems(replies)
    if problems and (len(problems) == len(replies) or len(problems) > max(1, _UNANSWERED * len(replies))):
        raise PoolError(
            f"policy {policy.policy_id} gives no answer to {len(problems)} of {len(replies)} prompts, at most "
            f"{_UNANSWERED:.0%} may go without; the first: {problems[0]}"
        )


def _seed(seed: int, name: str, chunk: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}|{chunk}".encode()).digest()[:7], "big")


def _read_journal(path: Path | None) -> dict[int, list[list[Reply]]]:
    """Finished chunks; a last line that a kill cut short is dropped from the file."""
    if path is None or not path.exists():
        return {}
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    rows = [orjson.loads(line) for line in whole.splitlines() if line]
    return {
        row["chunk"]: [[Reply(**reply) for reply in replies] for replies in row["replies"]] for row in rows
    }


def _append(path: Path | None, row: Mapping[str, Any]) -> None:
    if path is None:
        return
    with path.open("ab") as file:
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
