"""A pool of policies that candidates are drawn from: the champion, earlier ones, others in folders, remote ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.policy.endpoint import Asked, ChatEndpoint
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.settings import Compute, PoolEntry, RemotePolicy, Sampling
from flywheel_tasks.storage.digests import tree_digest

Chat = tuple[Card, Sequence[Turn]]


class PoolError(ValueError):
    """A policy of the pool cannot be used; the message names it."""


@dataclass(frozen=True)
class Chunk:
    """Prompts that are drawn together.

    Attributes:
        number: its place in the draw.
        prompts: cards and histories that end with a user's turn.
        seed: of its replies.
    """

    number: int
    prompts: Sequence[Chat]
    seed: int


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

    def draw(self, chunks: Sequence[Chunk], n: int) -> Iterator[tuple[int, list[list[Reply]]]]:
        """Number of each chunk, as it is done, and ``n`` replies to each of its prompts, in the order given."""

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

    def draw(self, chunks: Sequence[Chunk], n: int) -> Iterator[tuple[int, list[list[Reply]]]]:
        """One after the other. See :meth:`flywheel_tasks.policy.sampler.Sampler.sample_replies`."""
        for chunk in chunks:
            yield chunk.number, self._sampler.sample_replies(chunk.prompts, n, chunk.seed)

    def release(self) -> None:
        """Forget the weights: of a pool, one model at a time is in memory."""
        self._loaded = None


class EndpointPolicy:
    """A policy behind an OpenAI-compatible endpoint.

    It is shown what a local policy is shown: its own tokenizer is unknown, and replies to turns that the policies in
    training never see would teach them to make things up.

    Args:
        entry: of the setting.
        sampling: temperature and reply length; ``top_k`` is not part of the protocol and is not sent.
        champion: folder of the policy whose tokenizer counts.
        max_prompt_tokens: longer prompts lose their oldest turns.
    """

    def __init__(
        self, entry: RemotePolicy, sampling: Sampling, *, champion: Path, max_prompt_tokens: int
    ) -> None:
        self.name = entry.name
        self.policy_id = f"{entry.name}@{entry.model}"
        self._endpoint = ChatEndpoint(entry, sampling)
        self._champion, self._max = champion, max_prompt_tokens

    def chunk(self, n: int) -> int:
        """One prompt: how many are asked at once is the endpoint's affair, and changes no reply."""
        return 1

    def lengths(self, prompts: Sequence[Chat]) -> list[int]:
        """Characters: the remote tokenizer is unknown."""
        return [sum(len(turn["content"]) for turn in history) for _, history in prompts]

    def draw(self, chunks: Sequence[Chunk], n: int) -> Iterator[tuple[int, list[list[Reply]]]]:
        """Several at once. See :meth:`flywheel_tasks.policy.endpoint.ChatEndpoint.draw`."""
        from flywheel_tasks.chat.fixed_date import dated_tokenizer
        from flywheel_tasks.chat.prompt import fitting

        tokenizer = dated_tokenizer(self._champion)
        asked = [
            Asked(chunk.number, *fitting(tokenizer, *prompt, self._max), chunk.seed)
            for chunk in chunks
            for prompt in chunk.prompts
        ]
        for number, replies in self._endpoint.draw(asked, n):
            yield number, [replies]

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
            champion = root / "inputs/champion"
            pool.append(
                EndpointPolicy(entry, sampling, champion=champion, max_prompt_tokens=max_prompt_tokens)
            )
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
