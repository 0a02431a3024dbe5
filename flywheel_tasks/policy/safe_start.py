"""Where RL starts: the policy after SFT and DPO, drawn back towards the champion where it went too far already.

Imitation can overshoot the safe distance by itself, and RL only adds to it. Weights between the champion's and the
trained ones behave in between (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903; for
RL: Ramé et al. 2024, "WARP", arXiv 2406.16768), so the step is made shorter, not made again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from transformers import AutoModelForCausalLM

from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.pipeline.launcher import main_first
from flywheel_tasks.policy.checks import compare
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.training.probe import answers, load_model, probe_ids, write_probe

_log = logging.getLogger(__name__)
Row = dict[str, Any]
TRIES = 3  # each costs a round of held-out replies
SHORTER = (1 / 8, 1 / 2)  # of the way before: how much, at the least and at the most, a try leaves of it
CLOSE = 0.02  # above the limit, yet near enough: a few dozen prompts tell no more


@dataclass(frozen=True)
class Start:
    """The policy that RL starts from.

    Attributes:
        folder: of its model.
        share: of the way from the champion to the trained policy, above 0 to 1.
        rows: its held-out replies, of :data:`~flywheel_tasks.policy.heldout.SIDE`.
    """

    folder: Path
    share: float
    rows: list[Row]


@torch.no_grad()
def interpolate(champion: Path, policy: Path, share: float, out: Path) -> None:
    """Save the model whose weights lie between two of one architecture: champion + share · (policy - champion).

    Args:
        champion: folder of the first.
        policy: folder of the second; tokenizer and configuration are its.
        share: of the way, 0 to 1.
        out: folder to write (float32 safetensors, tokenizer, probe).

    Raises:
        ValueError: the models have other weights by name or shape.
    """

    def load(folder: Path) -> Any:
        return load_model(AutoModelForCausalLM, folder, torch.float32, local_files_only=True)

    first, model = load(champion), load(policy)
    before = dict(first.named_parameters())
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in (first, model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{champion} and {policy} are no models of one architecture: nothing lies between them"
        )
    for name, value in model.named_parameters():
        value.copy_(torch.lerp(before[name], value, share))
    tokenizer = dated_tokenizer(policy)
    asked = probe_ids(tokenizer)
    with atomic_path(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_probe(temporary, asked, answers(model, asked))


def find_start(
    champion: Path,
    policy: Path,
    most: float | None,
    replies: Callable[[Path, float], list[Row]],
    champion_replies: Sequence[Row],
    work: Path,
) -> Start:
    """The trained policy if it does not win too much, else one so near to the champion that it does not.

    On the way from the champion a policy gains about in proportion to the way, and the champion's own gain is zero
    without any noise. So a gain that is measured says which share of its way has the gain allowed. A measured
    win rate is noise of some points, and above the limit there would be no room left for RL to climb: the way is made
    shorter until what is measured keeps to the limit, and never longer again.

    Args:
        champion: folder of its model.
        policy: folder of the trained one.
        most: expected win rate against the champion; more than ``CLOSE`` above it, it went too far. None: no limit.
        replies: held-out replies of a model's folder; also given the share, to keep them by.
        champion_replies: the champion's.
        work: folder for the models between, kept for a run that goes on after a kill.
    """

    def wins(rows: list[Row]) -> float:
        return compare(0, rows, champion_replies, [None] * len(rows)).expected_win_rate()

    def between(share: float) -> Start:
        folder = work / f"start-{share:g}"
        with main_first():
            if not folder.exists():
                interpolate(champion, policy, share, folder)
        return Start(folder, share, replies(folder, share))

    trained = found = Start(policy, 1.0, replies(policy, 1.0))
    for _ in range(TRIES):
        if most is None or wins(found.rows) <= most + CLOSE:
            break
        allowed = norm.ppf(most) / norm.ppf(wins(found.rows))
        found = between(found.share * float(np.clip(allowed, *SHORTER)))
    if found is not trained:
        _log.info(
            "rl: the policy before RL wins %.2f of the held-out prompts against the champion, more than %.2f: "
            "RL starts %.3g of the way, at %.2f",
            wins(trained.rows),
            most,
            found.share,
            wins(found.rows),
        )
    return found
