"""Typed settings: ``params.yaml`` is their only source; a wrong or unknown key is an error that names it.

Each section of the file is one model here. A DVC stage names the sections it reads under ``params:``, and
:class:`ScopedSettings` refuses every other one, so that a stage cannot depend on a setting DVC does not watch.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flywheel_tasks.storage.documents import read_yaml
from flywheel_tasks.storage.experiment_records import Rule

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]

SIGNALS = ("continue", "thumb_up", "thumb_down", "love", "regenerate", "feedback", "report")
# Types of personal identifiers (flywheel_tasks/privacy/types.py says what each is).
IDENTIFIERS = (
    "SECRET",
    "URL_SECRET",
    "EMAIL",
    "IBAN",
    "CARD",
    "NATIONAL_ID",
    "CRYPTO",
    "URL",
    "IP",
    "PHONE",
    "ADDRESS",
    "NAME",
)
AB_METRICS = (
    "breadth",
    "active_days",
    "depth",
    "messages_per_active_user",
    "thumb_up_per_reply",
    "love_per_reply",
    "thumb_down_per_reply",
    "regenerate_per_reply",
    "report_per_reply",
    "safety_violation_per_reply",
    "latency_ms",
)
SPLITS = ("reward_train", "reward_heldout", "policy_train", "policy_heldout", "evaluation")


class SettingsError(ValueError):
    """``params.yaml`` is missing, is not YAML, or breaks a rule; the message names the file and the key."""


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Warehouse(Section):
    """Tables of a warehouse (``logs.location: ibis+URL``), by event type, and the folder that they are extracted to."""

    tables: dict[Literal["card", "message", "signal", "exposure"], str]
    extract_to: str


class Logs(Section):
    """Where the raw logs are, and how many of the newest days a generation reads."""

    location: str
    source: Literal["simulated", "files"]
    newest_days: Positive
    warehouse: Warehouse


class Simulation(Section):
    """Size of the demo's simulated population."""

    users: Positive
    internal_share: Share
    turns: Positive
    start_date: str
    days: Positive


class Ingest(Section):
    """Reading raw logs."""

    max_line_bytes: Positive
    rename: dict[str, str]  # old field names to new ones, of fields that logs write under another name
    cache_bytes: Annotated[int, Field(ge=0)]  # of parsed partitions kept for the next generation; 0: none

    @model_validator(mode="after")
    def _names(self) -> "Ingest":
        if chained := sorted(set(self.rename) & set(self.rename.values())):
            raise ValueError(f"rename: {', '.join(chained)} is both an old and a new name")
        if len(set(self.rename.values())) < len(self.rename):
            raise ValueError("rename: two old names for one field")
        return self


class Assemble(Section):
    """Events to conversations. ``continue``: the user answered a reply within the window."""

    continue_window_minutes: Positive
    max_history_messages: Positive  # a longer history loses its oldest messages


class Validate(Section):
    """Limits of validation. ``memory_mb``: what the table engine may hold before it spills to disk (MB)."""

    max_quarantine_share: Share
    memory_mb: Annotated[int, Field(ge=100)]


Dimension = Literal["source", "character", "topic", "depth", "length", "script", "cohort"]


class Sample(Section):
    """Constrained sampling (docs/curation.md). ``match``: dimensions whose mix is that of the raw traffic.

    ``targets``: shares by dimension and value instead; what they leave over goes to the other values in the mix
    of the traffic. ``at_least`` and ``at_most``: bounds in prompts. ``max_deviation``: a matched value whose share
    must miss its target by more is an error; null: it is reported only. ``max_values``: of a dimension, the rarest
    beyond are one. ``topics``: k-means clusters of the dimension ``topic``.
    """

    match: tuple[Dimension, ...]
    targets: dict[Dimension, dict[str, Share]]
    at_least: dict[Dimension, dict[str, Positive]]
    at_most: dict[Dimension, dict[str, Annotated[int, Field(ge=0)]]]
    max_deviation: Share | None
    max_values: Annotated[int, Field(ge=2)]
    topics: Positive

    @model_validator(mode="after")
    def _shares(self) -> "Sample":
        for name, shares in self.targets.items():
            if not shares or sum(shares.values()) > 1 + 1e-9:
                raise ValueError(f"targets.{name}: shares must be named and add up to at most 1")
        return self


class Curate(Section):
    """Which prompts of the traffic are kept (paper, section on traffic curation).

    ``keep_share``: of the prompts that differ; ``duplicate_cosine`` is lowered until no more than it stays.
    ``probes``: k-means cells that are searched for near-duplicates of a prompt. ``cached_embeddings``: vectors kept
    between runs, about 1.6 kB each.
    """

    duplicate_cosine: Share
    keep_share: Annotated[float, Field(gt=0.0, le=1.0)] | None
    probes: Positive
    cached_embeddings: Annotated[int, Field(ge=0)]
    blocked_words: tuple[str, ...]
    max_prompts: Positive
    max_prompts_per_user: Positive
    max_prompts_per_character: Positive | None
    sample: Sample


class Privacy(Section):
    """What is done about personal identifiers, by type (docs/privacy.md)."""

    policy: dict[str, Literal["replace", "drop", "keep"]]
    model: str | None  # finds names and addresses: spaCy pipeline, Hugging Face hub id, or a folder of either
    phone_regions: Annotated[tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> "Privacy":
        if set(self.policy) != set(IDENTIFIERS):
            odd = sorted(set(self.policy) ^ set(IDENTIFIERS))
            raise ValueError(f"policy must name each type once; missing or unknown: {', '.join(odd)}")
        return self


class Safety(Section):
    """Who judges whether a text is safe (docs/safety.md). Whatever cannot be judged is unsafe."""

    classifier: Literal["words", "local", "http"]
    model: str | None  # local: Hugging Face hub id or folder
    safe_labels: tuple[str, ...]  # local: labels that are no harm
    url: Annotated[str, Field(pattern="^https?://")] | None  # http
    timeout_seconds: PositiveFloat
    retries: Annotated[int, Field(ge=0, le=10)]
    batch_size: Positive
    threshold: Annotated[float, Field(gt=0.0, le=1.0)]

    @model_validator(mode="after")
    def _complete(self) -> "Safety":
        needed = {"local": self.model, "http": self.url, "words": ""}[self.classifier]
        if needed is None:
            raise ValueError(
                f"classifier {self.classifier} needs {'model' if self.classifier == 'local' else 'url'}"
            )
        return self


class Split(Section):
    """Share of users in each split; a user's split depends on the salt and their id only.

    ``max_evaluation_cosine``: an evaluation prompt closer than this to a prompt of another split is removed.
    ``reuse_evaluation``: whether prompts that judged an earlier launched generation may judge again.
    """

    salt: str
    shares: dict[str, Share]
    max_evaluation_cosine: Share
    reuse_evaluation: bool

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        if set(self.shares) != set(SPLITS):
            raise ValueError(f"shares must name exactly {', '.join(SPLITS)}")
        if abs(sum(self.shares.values()) - 1.0) > 1e-9:
            raise ValueError(f"shares must add up to 1, not {sum(self.shares.values())}")
        return self


_PURPOSES = ("reward_train", "reward_heldout", "policy")
# A label's answers and the controls of the labelling interface have these names already.
_TAKEN = (
    "false_refusal",
    "templated",
    "violates_card",
    "violated",
    "place",
    "reply",
    "preference",
    "rewrite",
)


class ExtraQuestion(Section):
    """A question of the team's own about each reply; without ``choices`` the answer is yes or no."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,30}$")]
    text: Annotated[str, Field(min_length=1, max_length=300)]
    choices: Annotated[tuple[str, ...], Field(max_length=12)] = ()

    @model_validator(mode="after")
    def _usable(self) -> "ExtraQuestion":
        if self.name in _TAKEN:
            raise ValueError(f"{self.name} is a name that annotation uses itself")
        if len(self.choices) == 1 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"{self.name}: choices must be two or more different texts, or left out")
        if any("$" in text or not text.strip() for text in (self.text, *self.choices)):
            raise ValueError(
                f"{self.name}: a text is empty or has a $, which Label Studio takes for a variable"
            )
        return self


class Overlap(Section):
    """Share of the tasks with one review that get several, to see how far annotators agree there too."""

    share: Share
    reviews: Annotated[int, Field(ge=2, le=20)]


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


PoolEntry = Literal["champion", "previous"] | LocalPolicy | RemotePolicy


def check_names(pool: tuple[PoolEntry, ...]) -> None:
    """Refuse a pool in which two policies have one name."""
    names = [entry if isinstance(entry, str) else entry.name for entry in pool]
    if len(set(names)) < len(names):
        raise ValueError("pool: a name repeats")


class AnnotationBatch(Section):
    """What goes out to the annotators: candidates a prompt, prompts a purpose, kinds of tasks, questions."""

    candidates: Annotated[int, Field(ge=2, le=8)]
    pool: Annotated[tuple[PoolEntry, ...], Field(min_length=1)]
    max_reward_train: Positive
    max_reward_heldout: Positive
    max_policy: Positive
    max_rewrite: Annotated[int, Field(ge=0)]
    gold_share: Annotated[float, Field(ge=0.0, le=0.5)]
    kinds: dict[str, Literal["comparison", "steerability"]]
    reviews: dict[str, Annotated[int, Field(ge=1, le=20)]]
    overlap: Overlap
    questions: tuple[ExtraQuestion, ...]
    guidelines: Annotated[str, Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _whole(self) -> "AnnotationBatch":
        for name in ("kinds", "reviews"):
            if set(getattr(self, name)) != set(_PURPOSES):
                raise ValueError(f"{name} must name exactly {', '.join(_PURPOSES)}")
        names = [question.name for question in self.questions]
        if len(set(names)) < len(names):
            raise ValueError("questions: a name repeats")
        check_names(self.pool)
        if "$" in self.guidelines:
            raise ValueError("guidelines: has a $, which Label Studio takes for a variable")
        return self


class LabelStudio(Section):
    """A Label Studio server; the token comes from the environment variable LABEL_STUDIO_API_KEY only."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    project: Annotated[
        str, Field(min_length=1, max_length=12)
    ]  # begins the titles of the projects made there
    timeout_seconds: PositiveFloat
    poll_minutes: PositiveFloat
    wait_hours: PositiveFloat


class Label(Section):
    """Who labels: the demo's simulated annotators, files that people deliver, or people in Label Studio.

    ``location`` is where labels are delivered: a folder, a file or ``s3://bucket/prefix``; ``{generation}`` in it
    is the generation's id.
    """

    annotator: Literal["simulated", "files", "label_studio"]
    location: str
    min_done: Share
    max_quarantine_share: Share
    label_studio: LabelStudio


class Consensus(Section):
    """Which pairs are good enough to measure with: at least so many reviews, and so much agreement."""

    min_reviews: Annotated[int, Field(ge=2)]
    min_agreement: Annotated[float, Field(gt=0.5, le=1.0)]


class GoldItems(Section):
    """Who is flagged by tasks with known answers: on ``min_items`` of them or more, surely below ``min_accuracy``."""

    min_items: Positive
    min_accuracy: Share


class Annotators(Section):
    """Who is flagged: with at least ``min_items`` shared decisions, agreement surely below ``min_agreement``."""

    min_items: Positive
    min_agreement: Share
    gold: GoldItems
    exclude_flagged: bool


class Annotate(Section):
    """Filters on ranking pairs, so that the surface cannot be learned; consensus; annotators."""

    max_length_ratio: Annotated[float, Field(ge=1.0)]
    max_emoji_difference: Annotated[int, Field(ge=0)]
    drop_both_refusals: bool
    pairs_per_prompt: Positive
    rewrites: bool  # whether annotators' rewrites become pairs and replies to learn from
    consensus: Consensus
    annotators: Annotators


class Tracking(Section):
    """Where training runs are shown; it changes no output, so no stage depends on it."""

    tracker: Literal["tensorboard", "mlflow", "wandb", "none"]


class Lora(Section):
    """LoRA on the last ``layers`` transformer layers."""

    rank: Positive
    alpha: Positive
    layers: Positive


class Training(Section):
    """What every training run has. ``max_tokens``: prompt and reply together; ``batch_size``: rows a step."""

    epochs: PositiveFloat
    learning_rate: PositiveFloat
    batch_size: Positive
    max_tokens: Positive
    lora: Lora


class PointwiseRm(Training):
    """Bradley-Terry reward model with a scalar head."""


class PairwiseRm(Training):
    """Both replies in one encoding; judges only."""

    max_pairs: Positive


class SignalModels(Section):
    """Classifiers of user signals; only ``used`` may select data."""

    signals: tuple[Literal["continue", "thumb_up", "thumb_down", "love", "regenerate", "feedback"], ...]
    used: tuple[str, ...]
    l2: PositiveFloat

    @model_validator(mode="after")
    def _known(self) -> "SignalModels":
        if unknown := set(self.used) - set(self.signals):
            raise ValueError(f"used names signals that are not trained: {', '.join(sorted(unknown))}")
        return self


class RejectionSample(Section):
    """Best of n with thresholds. ``candidates``: of each policy of the pool, for each prompt."""

    pool: Annotated[tuple[PoolEntry, ...], Field(min_length=1)]
    prompts: Positive
    candidates: Positive
    min_reward_quantile: Share
    min_continue: Share
    min_thumb_up: Share

    @model_validator(mode="after")
    def _names(self) -> "RejectionSample":
        check_names(self.pool)
        return self


class Sft(Training):
    """Supervised fine-tuning on a mixture: this generation's accepted replies and rewrites, and named sets."""

    mixture: dict[
        str, Share
    ]  # share of the rows by source; sources but the first three are sets/<name>.jsonl
    max_repeats: Positive  # of one row
    on_missing: Literal["error", "redistribute"]  # where a source with a share has no rows

    @model_validator(mode="after")
    def _whole(self) -> "Sft":
        if abs(sum(self.mixture.values()) - 1) > 1e-6:
            raise ValueError(f"mixture: the shares add up to {sum(self.mixture.values()):g}, not to 1")
        return self


class Dpo(Training):
    """Direct preference optimisation on a small set."""

    max_pairs: Positive
    beta: PositiveFloat


class Auxiliary(Section):
    """An auxiliary term of the reward: its value, from 0 to 1, counts up to ``bound``, times ``weight``."""

    weight: Annotated[float, Field(gt=0.0, le=1.0)]
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

    ``max_ratio``: a completion whose trainer-to-sampler ratio of probabilities is above it is left out.
    """

    mode: Literal["server", "colocate"]
    url: Annotated[str, Field(pattern=r"^https?://")]
    timeout_seconds: PositiveFloat
    gpu_memory_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    max_ratio: Annotated[float, Field(ge=1.0)]


class Rl(Section):
    """Online RL on prompts with a low mean or a high variance of reward (docs/policy-training.md).

    ``auxiliary`` and the penalties are counted in the mean spread of reward within a prompt.
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
    watch: Watch
    rollouts: Literal["local", "vllm"]
    vllm: Vllm
    heldout_prompts: Positive
    judge_prompts: Positive
    check_every: Positive
    target_win_rate: Share
    # Which checkpoint: nearest to the target; for experiments the last one, or the policy before RL.
    hand_over: Literal["nearest", "last", "start"]
    lora: Lora


class Judge(Section):
    """Who judges what rules cannot: nobody, a local model (folder or hub id), or an OpenAI-compatible endpoint.

    The endpoint's key comes from the environment variable ``key_variable``.
    """

    kind: Literal["none", "local", "endpoint"]
    model: str
    url: str
    key_variable: str

    @model_validator(mode="after")
    def _named(self) -> "Judge":
        if self.kind != "none" and not self.model:
            raise ValueError(f"judge kind {self.kind} needs a model")
        if self.kind == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise ValueError("judge kind endpoint needs an http(s) url")
        return self


class Evaluate(Section):
    """Offline evaluation on the evaluation split; ``suites``: further prompts by name, off when empty."""

    prompts: Positive
    samples: Positive
    judge: Judge
    suites: tuple[Literal["red_team", "over_refusal", "pushing", "tool_calls"], ...]


class Launch(Section):
    """Share of all users in each arm of the A/B test; tests of one layer share no users."""

    traffic_share: Annotated[float, Field(gt=0.0, le=0.5)]
    layer: Annotated[str, Field(min_length=1, max_length=200)]


class Approval(Section):
    """Who approves outside Airflow."""

    local: Literal["policy", "human"]


class Registry(Section):
    """Where the registry lives."""

    location: str


class Ab(Rule):
    """The A/B test: the rule that a plan fixes before its start, and where the events are.

    ``events``: ``logs``; a folder or s3 prefix of Parquet tables; or the URL of a warehouse (docs/experiments.md).
    """

    events: Annotated[str, Field(min_length=1)]
    segments: tuple[str, ...]
    look_minutes: PositiveFloat
    late_logs_hours: NonNegative

    @model_validator(mode="after")
    def _known_metrics(self) -> "Ab":
        if unknown := {*self.primary, *self.guardrails} - set(AB_METRICS):
            raise ValueError(f"unknown metrics: {', '.join(sorted(unknown))}; known: {', '.join(AB_METRICS)}")
        return self

    @property
    def rule(self) -> Rule:
        """What a plan takes over."""
        return Rule(**self.model_dump(include=set(Rule.model_fields)))


class Airflow(Section):
    """How Airflow runs a generation."""

    schedule: str | None
    retries: Annotated[int, Field(ge=0)]
    retry_delay_seconds: Positive
    approval_timeout_hours: PositiveFloat
    gpu_pool_slots: Positive


class ServeRate(Section):
    """Requests of one user: so many a minute, and so many at once."""

    per_minute: PositiveFloat
    burst: Positive


class ServeBreaker(Section):
    """A model that fails this often in a row is not asked again for a while."""

    failures: Positive
    seconds: PositiveFloat


class ServeLocal(Section):
    """Models in the gateway's own process: requests that come close together are answered together."""

    max_batch: Positive
    batch_wait_ms: NonNegative


class ServeUpstream(Section):
    """An OpenAI-compatible server; ``{model}`` in url and model stands for the generation of the model."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    model: Annotated[str, Field(min_length=1)]
    connections: Positive
    connect_seconds: PositiveFloat
    extra: dict[str, str | bool | int | float]


class Serve(Section):
    """The gateway, ``flywheel serve`` (docs/serving.md)."""

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    workers: Positive
    cards: str
    logs: str
    state: str
    segment_seconds: Annotated[int, Field(ge=1, le=86400)]
    poll_seconds: PositiveFloat
    turn_days: Positive
    rate: ServeRate
    max_body_bytes: Positive
    max_message_characters: Positive
    max_in_flight: Positive
    history_turns: Positive
    timeout_seconds: PositiveFloat
    safety_seconds: PositiveFloat
    drain_seconds: Positive
    breaker: ServeBreaker
    refusal: Annotated[str, Field(min_length=1)]
    backend: Literal["local", "upstream"]
    local: ServeLocal
    upstream: ServeUpstream


class Campaign(Section):
    """Several launches in a row on the demo's simulated people, unattended (docs/campaign.md).

    ``overlay``, ``overoptimise`` and ``ablations`` are other values of settings, by dotted name, such as
    ``rl.steps``: of every generation, of the over-optimised one on top of that, and of each ablation.
    """

    launches: Positive
    max_generations: Positive  # blocked ones and the over-optimised one included
    overoptimise_at: Annotated[int, Field(ge=0)]  # number of the generation; 0: none
    ceiling: bool  # false: the gate's limit on a high win rate is open
    counterfactuals: bool  # test what the gate blocked anyway, outside the registry
    inconclusive: Literal["promote_if_better", "roll_back"]
    panel_users: Annotated[int, Field(ge=2)]  # in each of three groups; measures true utility
    minutes_per_generation: PositiveFloat  # for the time left, until one is measured
    overlay: dict[str, Any]
    overoptimise: dict[str, Any]
    ablations: dict[Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,40}$")], dict[str, Any]]

    @model_validator(mode="after")
    def _possible(self) -> "Campaign":
        if self.max_generations < self.launches:
            raise ValueError("max_generations must not be below launches")
        return self


class Settings(Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    base: Base
    compute: Compute
    prompt: Prompt
    sampling: Sampling
    logs: Logs
    simulation: Simulation
    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    assemble: Assemble
    curate: Curate
    privacy: Privacy
    safety: Safety
    split: Split
    annotation_batch: AnnotationBatch
    label: Label
    annotate: Annotate
    pointwise_rm: PointwiseRm
    pairwise_rm: PairwiseRm
    signal_models: SignalModels
    rejection_sample: RejectionSample
    sft: Sft
    dpo: Dpo
    rl: Rl
    evaluate: Evaluate
    launch: Launch
    approval: Approval
    training: Tracking
    registry: Registry
    ab: Ab
    serve: Serve
    airflow: Airflow
    campaign: Campaign

    @model_validator(mode="after")
    def _signals_of_rl(self) -> "Settings":
        wanted = {name.removeprefix("p_") for name in self.rl.auxiliary if name.startswith("p_")}
        if unused := sorted(wanted - set(self.signal_models.used)):
            raise ValueError(f"rl.auxiliary names p_{unused[0]}, but signal_models.used lacks {unused[0]}")
        return self


def load_settings(path: Path) -> Settings:
    """Read and check ``params.yaml``.

    Args:
        path: the file.

    Raises:
        SettingsError: it is missing, not YAML, or a key is unknown, missing or out of range.
    """
    return read_yaml(path, Settings, SettingsError)


class ScopedSettings:
    """The sections a stage declared under ``params:`` in dvc.yaml; reading any other raises.

    Args:
        settings: all settings.
        stage: the stage's name, for the message.
        sections: the section names it declared.
    """

    def __init__(self, settings: Settings, stage: str, sections: frozenset[str]) -> None:
        self._settings = settings
        self._stage = stage
        self._sections = sections

    def __getattr__(self, name: str) -> Any:
        key = name.rstrip("_")
        if key not in self._sections:
            raise SettingsError(
                f"stage {self._stage} reads the setting {key}, which dvc.yaml does not list under its params"
            )
        return getattr(self._settings, name)
