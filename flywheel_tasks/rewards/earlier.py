"""The reward model of the last launched generation: training starts from it, and is measured against it.

Two models that are measured on different pairs cannot be told apart by their accuracies. So the earlier model, which is
placed into ``inputs/`` when the generation is opened, scores this generation's pairs, and the difference is taken pair
by pair. Before the first launch there is none: then the metrics say so, and nothing is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import expit
from transformers import AutoConfig

from flywheel_tasks.curation.split import split_of
from flywheel_tasks.evaluation.intervals import Estimate
from flywheel_tasks.evaluation.paired import no_surer_than_the_test
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.agreement import measured, preferred
from flywheel_tasks.rewards.calibration import over_users
from flywheel_tasks.rewards.encoding import Kind
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json

PIN = "inputs/reward_models.json"
_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
ALL_TRAINED_ON = "the earlier model was trained on every user of these pairs"


class EarlierModelError(ValueError):
    """The earlier model's files are not what was pinned; the message names the folder."""


def against_earlier(
    io: StageIO,
    kind: Kind,
    pairs: Sequence[Pair],
    margins: Sequence[float],
    margins_of: Callable[[Path, Sequence[Pair]], list[float]],
) -> dict[str, Any]:
    """Measure the last launched generation's model on pairs, and this one against it.

    Args:
        io: the stage; it declares ``inputs/reward_models.json``.
        kind: of both models.
        pairs: held-out ones.
        margins: logit of P(chosen) of each, by this generation's model.
        margins_of: the same by the model of a folder.

    Returns:
        ``generation`` of the earlier model, :func:`flywheel_tasks.rewards.agreement.measured` of it, ``accuracy_gain``
        and ``brier_gain`` of this model over it (positive is better), ``only_this_right`` and ``only_earlier_right``
        (pairs), and ``left_out_trained_on``: pairs of users whom the earlier generation trained on, who would flatter
        the earlier model. Without an earlier model the gains are null with the reason.

    Raises:
        EarlierModelError: the files are not what was pinned.
    """
    pinned = read_json(io.dep(PIN))
    folder = _pinned_folder(io, kind, pinned)
    if folder is None:
        return {"generation": pinned["generation"], **_unmeasured(pinned["reason"])}
    fair = [i for i, pair in enumerate(pairs) if not _trained_on(pair, pinned["split"])]
    about = {"generation": pinned["generation"], "left_out_trained_on": len(pairs) - len(fair)}
    if not fair:
        return {**about, **_unmeasured(ALL_TRAINED_ON)}
    kept = [pairs[i] for i in fair]
    return {**about, **gains([margins[i] for i in fair], margins_of(folder, kept), kept)}


def _pinned_folder(io: StageIO, kind: Kind, pinned: Mapping[str, Any]) -> Path | None:
    model = pinned["models"].get(kind)
    if model is None:
        return None
    folder = io.root / model["path"]
    found = tree_digest(folder) if folder.is_dir() else "missing"
    if found != model["digest"]:
        raise EarlierModelError(
            f"{folder} is {found}, pinned is {model['digest']}; open the generation again"
        )
    return folder


@dataclass(frozen=True)
class Start:
    """What a reward model's training starts from.

    Attributes:
        folder: of the weights.
        account: ``generation`` of the model (None: the first policy), and the ``reason`` why not an earlier one.
    """

    folder: Path
    account: dict[str, Any]


def start_of(io: StageIO, kind: Kind, wanted: Literal["base", "earlier"]) -> Start:
    """The last launched generation's model, if it is wanted and can be, else the first policy.

    A model that knows users whom this generation measures on would flatter itself, so it must have had this
    generation's rule of splitting them; it must be of the same architecture, as it is not after a change of the
    first policy; and nobody whom it knows may have asked to be forgotten.

    Args:
        io: the stage; it declares ``models/base``, ``inputs/reward_models.json`` and the setting ``split``.
        kind: of the model.
        wanted: the setting.

    Raises:
        EarlierModelError: the files are not what was pinned.
    """
    base = io.dep("models/base")
    pinned = read_json(io.dep(PIN))
    folder = _pinned_folder(io, kind, pinned) if wanted == "earlier" else None
    split = {"salt": io.settings.split.salt, "shares": dict(io.settings.split.shares)}
    if wanted == "base":
        reason = "the setting start"
    elif folder is None:
        reason = pinned["reason"]
    elif pinned.get("knows_forgotten"):
        reason = f"{pinned['generation']} learned from users who asked to be forgotten"
    elif pinned["split"] != split:
        reason = f"{pinned['generation']} split users by another rule"
    elif _shape(folder) != _shape(base):
        reason = f"{pinned['generation']} has another architecture than models/base"
    else:
        return Start(folder, {"generation": pinned["generation"], "reason": None})
    return Start(base, {"generation": None, "reason": reason})


def _shape(folder: Path) -> list[Any]:
    text = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    return [getattr(text, name, None) for name in _SHAPE]


def _unmeasured(reason: str) -> dict[str, Any]:
    nothing = Estimate(value=None, low=None, high=None, n=0, clusters=0, reason=reason)
    return {"accuracy_gain": nothing, "brier_gain": nothing}


def _trained_on(pair: Pair, split: dict[str, Any] | None) -> bool:
    """Whether the earlier generation's reward models were trained on a pair's user; its split tells."""
    return split is not None and split_of(pair.user_id, split["salt"], split["shares"]) == "reward_train"


def gains(this: Sequence[float], earlier: Sequence[float], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The earlier model on its own, and this one minus it, pair by pair.

    The intervals are 95% percentile intervals of a bootstrap that draws whole users, both models' answers to a pair
    together (Efron and Tibshirani 1993, chapter 8 and 13), and no surer than a sign-flip test over users.

    Args:
        this: logit of P(chosen) of each pair, by this generation's model.
        earlier: the same, by the earlier one.
        pairs: the pairs.
    """
    users = [pair.user_id for pair in pairs]
    right, right_then = np.array(preferred(this)), np.array(preferred(earlier))
    errors, errors_then = ((1 - expit(np.asarray(side, dtype=float))) ** 2 for side in (this, earlier))
    return {
        **measured(earlier, users),
        "accuracy_gain": _mean_of(right - right_then, users),
        "brier_gain": _mean_of(errors_then - errors, users),
        "only_this_right": int(np.sum(right > right_then)),
        "only_earlier_right": int(np.sum(right < right_then)),
    }


def _mean_of(differences: np.ndarray, users: Sequence[str]) -> Estimate:
    found = over_users(lambda rows: float(differences[rows].mean()), users, seed=0)
    return no_surer_than_the_test(found, differences.tolist(), users, bounded=True)
