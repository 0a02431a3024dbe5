"""A pool of policies that candidates are drawn from: the champion, earlier ones, others in folders, remote ones.

A draw is resumable: prompts of similar length go through a policy in chunks, and each chunk's replies are written to a
journal before the next one starts. The seed of a chunk depends on the policy and the chunk only, so a run that was
killed and goes on gives the replies of one that was not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.policy.endpoint import ChatEndpoint
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.settings import Compute, PoolEntry, RemotePolicy, Sampling
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.journal import append, read_journal
from flywheel_tasks.training.progress import Meter

Chat = tuple[Card, Sequence[Turn]]


class PoolError(ValueError):
    """A policy of the pool cannot be used; the message names it."""


class Policy(Protocol):
    """Something that answers chats.

    Attributes:
        name: its name in the pool.
        policy_id: what candidates record: the name, and which weights or which remote model.
    """

    name: str
    policy_id: str

    def chunk(self, n: int) -> int:
        """Prompts that are best drawn together when each gets ``n`` replies."""

    def lengths(self, prompts: Sequence[Chat]) -> list[int]:
        """How long each prompt is, to go through similar ones together."""

    def draw(self, prompts: Sequence[Chat], n: int, seed: int) -> list[list[Reply]]:
        """``n`` replies to each prompt, in the order given."""

    def release(self) -> None:
        """Free the memory that drawing needed."""


class LocalPolicy:
    """A policy in a folder; its weights are loaded when it is first used.

    Args:
        name: its name in the pool.
        folder: of ``save_pretrained``, tokenizer included.
        digest: of the folder's files, as pinned.
        sampling: how to draw.
        compute: precision and threads.
        max_prompt_tokens: longer prompts lose their oldest turns.

    Raises:
        PoolError: the folder is missing or is not what was pinned.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        digest: str,
        *,
        sampling: Sampling,
        compute: Compute,
        max_prompt_tokens: int,
    ) -> None:
        found = tree_digest(folder) if folder.is_dir() else "missing"
        if found != digest:
            raise PoolError(
                f"policy {name}: {folder} is {found}, pinned is {digest}; open the generation again"
            )
        self.name = name
        self.policy_id = f"{name}@{digest.removeprefix('sha256:')[:12]}"
        self._folder = folder
        self._sampling, self._compute, self._max = sampling, compute, max_prompt_tokens
        self._loaded: Any = None

    @property
    def _sampler(self) -> Any:
        if self._loaded is None:
            from flywheel_tasks.policy.sampler import Sampler

            self._loaded = Sampler(
                self._folder, sampling=self._sampling, compute=self._compute, max_prompt_tokens=self._max
            )
        return self._loaded

    def chunk(self, n: int) -> int:
        """One batch of the sampler."""
        return self._sampling.prompts_a_batch(n)

    def lengths(self, prompts: Sequence[Chat]) -> list[int]:
        """Prompt tokens."""
        from flywheel_tasks.chat.prompt import prompt_ids

        return [len(prompt_ids(self._sampler.tokenizer, *prompt, self._max)) for prompt in prompts]

    def draw(self, prompts: Sequence[Chat], n: int, seed: int) -> list[list[Reply]]:
        """See :meth:`flywheel_tasks.policy.sampler.Sampler.sample_replies`."""
        found: list[list[Reply]] = self._sampler.sample_replies(prompts, n, seed)
        return found

    def release(self) -> None:
        """Forget the weights: of a pool, one model at a time is in memory."""
        self._loaded = None


class EndpointPolicy:
    """A policy behind an OpenAI-compatible endpoint.

    Args:
        entry: of the setting.
        sampling: temperature and reply length; ``top_k`` is not part of the protocol and is not sent.
    """

    def __init__(self, entry: RemotePolicy, sampling: Sampling) -> None:
        self.name = entry.name
        self.policy_id = f"{entry.name}@{entry.model}"
        self._concurrency = entry.concurrency
        self._endpoint = ChatEndpoint(entry, sampling)

    def chunk(self, n: int) -> int:
        """A few rounds of the requests that run at once."""
        return 4 * self._concurrency

    def lengths(self, prompts: Sequence[Chat]) -> list[int]:
        """Characters: the remote tokenizer is unknown."""
        return [sum(len(turn["content"]) for turn in history) for _, history in prompts]

    def draw(self, prompts: Sequence[Chat], n: int, seed: int) -> list[list[Reply]]:
        """See :meth:`flywheel_tasks.policy.endpoint.ChatEndpoint.draw`."""
        return self._endpoint.draw(prompts, n, seed)

    def release(self) -> None:
        """Nothing is kept here."""


def open_pool(
    entries: Sequence[PoolEntry],
    pinned: Mapping[str, Any],
    root: Path,
    *,
    sampling: Sampling,
    compute: Compute,
    max_prompt_tokens: int,
) -> list[Policy]:
    """The policies of a setting, as they were pinned when the generation was opened.

    Args:
        entries: the setting; ``previous`` is left out where no such champion was pinned.
        pinned: what :mod:`flywheel_tasks.pipeline.pool_pin` wrote: folder and digest of each local policy.
        root: the workspace.
        sampling: how to draw.
        compute: precision and threads.
        max_prompt_tokens: longer prompts lose their oldest turns.

    Raises:
        PoolError: a policy is not pinned, or is not what was pinned.
    """
    places = {row["name"]: row for row in pinned["policies"]}
    pool: list[Policy] = []
    for entry in entries:
        if isinstance(entry, RemotePolicy):
            pool.append(EndpointPolicy(entry, sampling))
            continue
        name = entry if isinstance(entry, str) else entry.name
        if name not in places:
            if name == "previous":
                continue
            raise PoolError(f"policy {name} is not pinned for this generation; open the generation again")
        place = places[name]
        options: dict[str, Any] = {
            "sampling": sampling,
            "compute": compute,
            "max_prompt_tokens": max_prompt_tokens,
        }
        pool.append(LocalPolicy(name, root / place["path"], place["digest"], **options))
    if not pool:
        raise PoolError("no policy of the pool is there")
    return pool


def share_out(policies: Sequence[Policy], n: int) -> list[tuple[Policy, int]]:
    """How many of ``n`` candidates each policy draws: evenly, the first ones one more; who gets none is left out."""
    each, more = divmod(n, len(policies))
    counts = [each + (number < more) for number in range(len(policies))]
    return [(policy, count) for policy, count in zip(policies, counts, strict=True) if count]


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
    """
    if not prompts:
        return []
    lengths = policy.lengths(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    size = policy.chunk(n)
    path = journal / f"{policy.name}.jsonl" if journal is not None else None
    done = _finished(path)
    meter = Meter(f"Candidates of {policy.policy_id}" if say else None, len(prompts), "prompts")
    replies: list[list[Reply]] = [[] for _ in prompts]
    for number, start in enumerate(range(0, len(order), size)):
        positions = order[start : start + size]
        found = done.get(number)
        if found is None:
            found = policy.draw([prompts[i] for i in positions], n, _seed(seed, policy.name, number))
            if path is not None:
                append(path, {"chunk": number, "replies": found})
        for position, texts in zip(positions, found, strict=True):
            replies[position] = texts
        meter.advance(len(positions))
    policy.release()
    return replies


def _seed(seed: int, name: str, chunk: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}|{chunk}".encode()).digest()[:7], "big")


def _finished(path: Path | None) -> dict[int, list[list[Reply]]]:
    """The chunks of a journal."""
    rows = [] if path is None else read_journal(path)
    return {
        row["chunk"]: [[Reply(**reply) for reply in replies] for replies in row["replies"]] for row in rows
    }
