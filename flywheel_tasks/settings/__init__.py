"""Typed settings: ``params.yaml`` is their only source; a wrong or unknown key is an error that names it.

Each section of the file is one model, in a module by area; all are imported from here. A DVC stage names the sections
it reads under ``params:``, and :class:`ScopedSettings` refuses every other one, so that a stage cannot depend on a
setting DVC does not watch. DVC watches values, not these modules: what a value means is in the code that reads it.
"""

from flywheel_tasks.settings.annotation import (
    Annotate,
    AnnotationBatch,
    Annotators,
    Consensus,
    ExtraQuestion,
    GoldItems,
    Label,
    LabelStudio,
    Overlap,
)
from flywheel_tasks.settings.campaign import Campaign
from flywheel_tasks.settings.curation import SPLITS, Curate, Dimension, Sample, Split
from flywheel_tasks.settings.document import ScopedSettings, Settings, load_settings
from flywheel_tasks.settings.evaluation import Evaluate, Judge
from flywheel_tasks.settings.models import (
    Base,
    Compute,
    LocalPolicy,
    PoolEntry,
    Prompt,
    RemotePolicy,
    Sampling,
    check_names,
    without_patience,
)
from flywheel_tasks.settings.online import AB_METRICS, Ab, Airflow, Approval, Launch, Registry
from flywheel_tasks.settings.policy import (
    TRAFFIC,
    Auxiliary,
    Dpo,
    Limit,
    RejectionSample,
    Rl,
    Sft,
    Vllm,
    Watch,
)
from flywheel_tasks.settings.privacy import IDENTIFIERS, Privacy, Safety
from flywheel_tasks.settings.rewards import (
    SIGNALS,
    TRAINABLE_SIGNALS,
    EarlierPairs,
    PairwiseRm,
    PointwiseRm,
    PreferenceModel,
    SignalModels,
)
from flywheel_tasks.settings.section import (
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
    SettingsError,
    Share,
)
from flywheel_tasks.settings.serving import Serve, ServeBreaker, ServeLocal, ServeRate, ServeUpstream
from flywheel_tasks.settings.traffic import Assemble, Ingest, Logs, Simulation, Validate, Warehouse
from flywheel_tasks.settings.training import Lora, Tracking, Training

__all__ = [
    "AB_METRICS",
    "IDENTIFIERS",
    "SIGNALS",
    "SPLITS",
    "TRAFFIC",
    "TRAINABLE_SIGNALS",
    "Ab",
    "Airflow",
    "Annotate",
    "AnnotationBatch",
    "Annotators",
    "Approval",
    "Assemble",
    "Auxiliary",
    "Base",
    "Campaign",
    "Compute",
    "Consensus",
    "Curate",
    "Dimension",
    "Dpo",
    "EarlierPairs",
    "Evaluate",
    "ExtraQuestion",
    "GoldItems",
    "Ingest",
    "Judge",
    "Label",
    "LabelStudio",
    "Launch",
    "Limit",
    "LocalPolicy",
    "Logs",
    "Lora",
    "NonNegative",
    "Overlap",
    "PairwiseRm",
    "PointwiseRm",
    "PoolEntry",
    "Positive",
    "PositiveFloat",
    "PreferenceModel",
    "Privacy",
    "Prompt",
    "Registry",
    "RejectionSample",
    "RemotePolicy",
    "Rl",
    "Safety",
    "Sample",
    "Sampling",
    "ScopedSettings",
    "Section",
    "Serve",
    "ServeBreaker",
    "ServeLocal",
    "ServeRate",
    "ServeUpstream",
    "Settings",
    "SettingsError",
    "Sft",
    "Share",
    "SignalModels",
    "Simulation",
    "Split",
    "Tracking",
    "Training",
    "Validate",
    "Vllm",
    "Warehouse",
    "Watch",
    "check_names",
    "load_settings",
    "without_patience",
]
