"""Settings of models wherever they are used: where they come from, how they compute, how replies are drawn."""

from typing import Annotated, Any, Literal

from pydantic import Field

from flywheel_tasks.settings.section import Positive, PositiveFloat, Section


class Base(Section):
    """First models: a built-in name, a Hugging Face hub id, or a local folder."""

    policy: str
    embedder: str


class Compute(Section):
    """How torch computes.

    ``launcher``: a file for ``accelerate launch``, for every training or one by stage; null: one process.
    """

    precision: Literal["auto", "float32", "bfloat16"]
    threads: Positive
    launcher: (
        str | dict[Literal["train_pointwise_rm", "train_pairwise_rm", "sft", "dpo", "rl"], str] | None
    ) = None


class Prompt(Section):
    """How a card and a history become the policy's prompt (tokens)."""

    max_tokens: Positive


class Sampling(Section):
    """How replies are drawn, everywhere."""

    max_new_tokens: Positive
    temperature: PositiveFloat
    top_k: Positive
    batch_rows: Positive

    def prompts_a_batch(self, n: int) -> int:
        """Prompts that are decoded together, with ``n`` replies each; at least one."""
        return max(1, self.batch_rows // n)


class LocalPolicy(Section):
    """A policy of the pool that lies in a folder or on the Hugging Face hub (safetensors only)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    model: str


class RemotePolicy(Section):
    """A policy of the pool behind an OpenAI-compatible endpoint, such as vLLM.

    ``api_key_env`` names the environment variable that holds the key, never the key.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    endpoint: Annotated[str, Field(pattern=r"^https?://")]
    model: str
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    concurrency: Annotated[int, Field(gt=0, le=256)] = 8
    timeout_seconds: PositiveFloat = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5


_PATIENCE = frozenset({"concurrency", "timeout_seconds", "retries"})


def without_patience(section: Any) -> Any:
    """A section of params.yaml without what says how patiently a pool's remote policies are asked.

    It changes no reply: a draw that was killed, or given up, goes on with other numbers.

    Args:
        section: as read from the file; one without a pool is given back as it is.
    """
    if not isinstance(section, dict) or not isinstance(section.get("pool"), list):
        return section
    pool = [
        {key: value for key, value in entry.items() if key not in _PATIENCE}
        if isinstance(entry, dict)
        else entry
        for entry in section["pool"]
    ]
    return section | {"pool": pool}


PoolEntry = Literal["champion", "previous"] | LocalPolicy | RemotePolicy


def check_names(pool: tuple[PoolEntry, ...]) -> None:
    """Refuse a pool in which two policies have one name."""
    names = [entry if isinstance(entry, str) else entry.name for entry in pool]
    if len(set(names)) < len(names):
        raise ValueError("pool: a name repeats")
