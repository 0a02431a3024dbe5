"""Settings of policy training: rejection sampling, SFT, DPO, RL."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.models import PoolEntry, check_names
from flywheel_tasks.settings.section import NonNegative, Positive, PositiveFloat, Section, Share
from flywheel_tasks.settings.training import Lora, Training

TRAFFIC = ("rejection_internal", "rejection_user", "rewrites")  # this generation's own rows, for SFT
PREFERENCES = "preferences"  # and its own pairs, for DPO


class RejectionSample(Section):
    """Best of n with thresholds. ``candidates``: of each policy of the pool, for each prompt.

    ``min_instructions``: least share of the card's instructions that code can check and the reply keeps;
    ``most_instructions``: only the candidates of a prompt that keep most of them go on to the reward model;
    ``drop_templated``: candidates with a phrase or pattern that recurs over the prompts are not kept. A ``min_`` of a
    signal above 0 needs the signal in ``signal_models.used``.
    """

    pool: Annotated[tuple[PoolEntry, ...], Field(min_length=1)]
    prompts: Positive
    candidates: Positive
    min_reward_quantile: Share
    min_continue: Share
    min_thumb_up: Share
    min_instructions: Share
    most_instructions: bool
    drop_templated: bool

    @property
    def least_signals(self) -> dict[str, float]:
        """The thresholds on signals: least probability of each."""
        return {"continue": self.min_continue, "thumb_up": self.min_thumb_up}

    @model_validator(mode="after")
    def _names(self) -> "RejectionSample":
        check_names(self.pool)
        return self


class Sft(Training):
    """Supervised fine-tuning on a mixture: this generation's accepted replies and rewrites, and named sets."""

    mixture: dict[str, Share]  # share of the rows by source; sources but TRAFFIC are sets/<name>.jsonl
    max_repeats: Positive  # of one row
    on_missing: Literal["error", "redistribute"]  # where a source with a share has no rows

    @model_validator(mode="after")
    def _whole(self) -> "Sft":
        if abs(sum(self.mixture.values()) - 1) > 1e-6:
            raise ValueError(f"mixture: the shares add up to {sum(self.mixture.values()):g}, not to 1")
        return self

    @property
    def sets(self) -> list[str]:
        """The named sets that have a share."""
        return sorted(name for name, share in self.mixture.items() if share > 0 and name not in TRAFFIC)


class Dpo(Training):
    """Direct preference optimisation on small sets."""

    # Most pairs of each set: this generation's preferences, and rows of sets/<name>.jsonl that have a rejected reply.
    pairs: Annotated[dict[str, Positive], Field(min_length=1)]
    beta: PositiveFloat

    @property
    def sets(self) -> list[str]:
        """The named sets whose pairs are learned."""
        return sorted(set(self.pairs) - {PREFERENCES})


class Auxiliary(Section):
    """An auxiliary term of the reward: its value, from 0 to 1, counts up to ``bound``, times ``weight``.

    ``weight``: at most 1 for a user signal, at most 5 for what code checks.
    """

    weight: Annotated[float, Field(gt=0.0, le=5.0)]
    bound: Annotated[float, Field(gt=0.0, le=1.0)]


class Limit(Section):
    """A limit that warns and one that stops; null: none."""

    warn: NonNegative | None
    stop: NonNegative | None


class Watch(Section):
    """Limits of a training run, in nats a token: KL to the policy before it, from above; entropy, from below."""

    kl: Limit
    entropy: Limit


class Vllm(Section):
    """Rollouts by vLLM. ``server``: at ``url``, on GPUs of its own; ``colocate``: on the trainer's GPUs.

    ``max_ratio``: the trainer-to-sampler ratio of probabilities, by which a token is weighed, counts up to it.
    """

    mode: Literal["server", "colocate"]
    url: Annotated[str, Field(pattern=r"^https?://")]
    timeout_seconds: PositiveFloat
    gpu_memory_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    max_ratio: Annotated[float, Field(ge=1.0)]


class Rl(Section):
    """Online RL on prompts with a low mean or a high variance of reward (docs/policy-training.md).

    ``auxiliary`` and the penalties are counted in the mean spread of reward within a prompt. ``start_win_rate``: a
    policy before RL that wins more than 0.02 more against the champion is drawn back towards it first, to that rate;
    null: it never is.
    """

    method: Literal["grpo", "online_dpo"]
    steps: Positive
    prompts_per_step: Positive
    group_size: Annotated[int, Field(ge=2)]
    select_from: Positive
    select_share: Share
    learning_rate: PositiveFloat
    beta: NonNegative
    dpo_beta: PositiveFloat
    auxiliary: dict[Literal["p_continue", "p_thumb_up", "instructions"], Auxiliary]
    length_penalty: NonNegative
    length_limit: Positive
    cut_off_penalty: NonNegative
    artifact_penalties: dict[str, PositiveFloat]
    template_penalty: NonNegative
    watch: Watch
    rollouts: Literal["local", "vllm"]
    vllm: Vllm
    heldout_prompts: Positive
    heldout_samples: Positive
    judge_prompts: Positive
    check_every: Positive
    start_win_rate: Annotated[float, Field(ge=0.5, le=1.0)] | None
    target_win_rate: Share
    # Which checkpoint: nearest to the target; for experiments the last one, or the policy before RL.
    hand_over: Literal["nearest", "last", "start"]
    lora: Lora

    @model_validator(mode="after")
    def _signals_stay_small(self) -> "Rl":
        # Optimised directly, user signals failed in known ways (paper, section on reward models); code's checks do not.
        for name, term in self.auxiliary.items():
            if name != "instructions" and term.weight > 1.0:
                raise ValueError(f"auxiliary.{name}: the weight of a user signal is 1 at most")
        return self
