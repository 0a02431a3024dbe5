"""All sections together, as ``params.yaml`` has them, and the part of them that a stage may read."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from flywheel_tasks.settings.annotation import Annotate, AnnotationBatch, Label
from flywheel_tasks.settings.campaign import Campaign
from flywheel_tasks.settings.curation import Curate, Split
from flywheel_tasks.settings.evaluation import Evaluate
from flywheel_tasks.settings.models import Base, Compute, Prompt, Sampling
from flywheel_tasks.settings.online import Ab, Airflow, Approval, Launch, Registry
from flywheel_tasks.settings.policy import Dpo, RejectionSample, Rl, Sft
from flywheel_tasks.settings.privacy import Privacy, Safety
from flywheel_tasks.settings.rewards import PairwiseRm, PointwiseRm, SignalModels
from flywheel_tasks.settings.section import Section, SettingsError
from flywheel_tasks.settings.serving import Serve
from flywheel_tasks.settings.traffic import Assemble, Ingest, Logs, Simulation, Validate
from flywheel_tasks.settings.training import Tracking
from flywheel_tasks.storage.documents import read_yaml


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

    @model_validator(mode="after")
    def _signals_of_rejection(self) -> "Settings":
        wanted = {signal for signal, least in self.rejection_sample.least_signals.items() if least > 0}
        if unused := sorted(wanted - set(self.signal_models.used)):
            raise ValueError(
                f"rejection_sample.min_{unused[0]} is above 0, but signal_models.used lacks {unused[0]}"
            )
        return self


def load_settings(path: Path, *, alone: bool = False) -> Settings:
    """Read and check ``params.yaml``.

    Args:
        path: the file.
        alone: for a reward model outside generations; its limits need not fit what a policy is asked and says.

    Raises:
        SettingsError: it is missing, not YAML, a key is unknown, missing or out of range, or limits do not fit.
    """
    if not path.exists():
        raise SettingsError(
            f"{path}: no such file; a workspace is the folder with it and dvc.yaml: go there, or name it by --root"
        )
    settings = read_yaml(path, Settings, SettingsError)
    if not alone and (faults := _limits_that_do_not_fit(settings)):
        raise SettingsError("\n".join(f"{path}: {fault}" for fault in faults))
    return settings


def _limits_that_do_not_fit(settings: Settings) -> list[str]:
    """Limits in tokens that prompts and replies of the policy, as long as they may be, break; each by its name."""
    prompt, reply, found = settings.prompt.max_tokens, settings.sampling.max_new_tokens, []
    both = f"prompt.max_tokens ({prompt}) + sampling.max_new_tokens ({reply})"
    for name, limit in (("sft", settings.sft.max_tokens), ("dpo", settings.dpo.max_tokens)):
        if limit < prompt + reply:
            found.append(
                f"{name}.max_tokens: {limit} is less than {both}: long prompts would be cut in training"
            )
    judged = settings.pointwise_rm.max_tokens
    if judged < prompt + reply + 1:
        found.append(
            f"pointwise_rm.max_tokens: {judged} is less than {both} + 1: long replies would be judged cut"
        )
    if (most := judged - judged // 4) < prompt:
        found.append(
            f"pointwise_rm.max_tokens: {judged} leaves a prompt {most}, less than prompt.max_tokens ({prompt}): long "
            "prompts would be judged cut"
        )
    if settings.rl.length_penalty > 0 and settings.rl.length_limit > reply:
        found.append(
            f"rl.length_limit: {settings.rl.length_limit} is more than sampling.max_new_tokens ({reply}): no reply is "
            "longer, so rl.length_penalty would never count"
        )
    return found


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
