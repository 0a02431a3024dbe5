"""Reward models outside a generation: train one on a file of pairs, measure one on a file of pairs.

Training is the very stage of a generation, in a working folder of its own beside the result.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from filelock import FileLock, Timeout

import flywheel_tasks
from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.pipeline import earlier_pairs, reward_model_pin
from flywheel_tasks.pipeline.graph import Stage
from flywheel_tasks.pipeline.stage import one_gpu
from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.policy.base_model import BaseModelError, WheelError, save_policy
from flywheel_tasks.rewards import pairwise, pointwise
from flywheel_tasks.rewards.agreement import agreement
from flywheel_tasks.rewards.encoding import Limits, RewardModelError
from flywheel_tasks.rewards.pairs import PairError, parse_pairs, require
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.settings import Compute, load_settings
from flywheel_tasks.storage.atomic import replace
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, write_table
from flywheel_tasks.traffic.importers import SkippedRow, read_hh_rlhf
from flywheel_tasks.training.run import TrainingError

Kind = Literal["pointwise", "pairwise"]
_RUN = {"pointwise": pointwise.run, "pairwise": pairwise.run}
_PAIRS = "data/preferences/pairs.parquet"
_CODE = "code.json"
_CHECKPOINTS = f"{STATE}/resume/*/*/checkpoint-*"
_FINAL = (PairError, BaseModelError, WheelError, RewardModelError, TrainingError)


def read_pair_rows(path: Path) -> tuple[list[dict[str, Any]], list[SkippedRow]]:
    """Rows of preference pairs from a file.

    Args:
        path: Parquet in the format of ``data/preferences/pairs.parquet``, or JSON Lines (``.gz`` or not) of
            ``chosen`` and ``rejected`` transcripts as hh-rlhf has them.

    Returns:
        the rows, and lines that were not taken with their reasons.

    Raises:
        PairError: the file is of neither kind, lacks columns, or holds no pair.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        try:
            rows, skipped = read_rows(path), []
        except (pa.ArrowInvalid, OSError) as error:
            raise PairError(f"{path}: not a Parquet file: {error}") from error
        if rows and (absent := set(PAIRS.names) - set(rows[0])):
            raise PairError(f"{path}: columns are missing: {', '.join(sorted(absent))}")
    elif name.endswith((".jsonl", ".json")):
        imported = read_hh_rlhf(path)
        rows, skipped = imported.rows, imported.skipped
    else:
        raise PairError(f"{path}: neither .parquet nor .jsonl[.gz]")
    if not rows:
        raise PairError(f"{path}: no pair in it ({len(skipped)} lines skipped)")
    return rows, skipped


def hold_out(rows: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Give every row a purpose: a share of the users is held out, the others are trained on.

    Rows that come with both purposes keep them.

    Raises:
        PairError: there are fewer than two users, so nobody can be held out.
    """
    if {"reward_train", "reward_heldout"} <= {row["purpose"] for row in rows}:
        return rows
    users = sorted({row["user_id"] for row in rows}, key=lambda user: draw_order(seed, "rm", user))
    if len(users) < 2:
        raise PairError("pairs of at least two users are needed: one must be held out")
    out = set(users[: max(1, round(share * len(users)))])
    return [row | {"purpose": "reward_heldout" if row["user_id"] in out else "reward_train"} for row in rows]


def _checked_table(rows: list[dict[str, Any]], path: Path) -> pa.Table:
    """The rows as the stage reads them.

    Raises:
        PairError: a row breaks a rule, or a value has not its column's type.
    """
    require(parse_pairs(rows, path), path)
    try:
        return pa.Table.from_pylist(rows, schema=PAIRS)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PairError(f"{path}: a value has not its column's type: {error}") from error


def _prepare(work: Path, table: pa.Table, base: str, params: Mapping[str, Any], wheels: Path) -> None:
    """A workspace with what the training stage reads."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False), encoding="utf-8")
    write_table(table, work / _PAIRS)
    alone = {**reward_model_pin.NONE, "reason": "no earlier model: trained outside a generation"}
    write_json(alone, work / reward_model_pin.PIN)
    earlier_pairs.write_none(work)
    # A killed run's backbone is taken again only if it is of the same source, and was whole when its source was noted.
    folder, note = work / "models/base", work / "models/base.json"
    source = {"base": base, "digest": tree_digest(Path(base)) if Path(base).is_dir() else None}
    if not note.exists() or read_json(note) != source:
        note.unlink(missing_ok=True)
        made = work / "models/base.new"
        shutil.rmtree(made, ignore_errors=True)
        save_policy(base, wheels, made)
        replace(made, folder)
        write_json(source, note)


def _alone(stage: Stage, work: Path) -> Stage:
    """The stage in one process, whose code is this package's and whose metrics go to the caller.

    The code that it depends on is not in the workspace, so its digests are written there as an input: a killed run must
    not go on with another code than it began with.
    """
    code = [dep for dep in stage.deps if dep.startswith("flywheel_tasks/")]
    home = Path(flywheel_tasks.__file__).parent.parent
    found = {dep: tree_digest(home / dep) if (home / dep).exists() else None for dep in code}
    write_json(found, work / _CODE)
    return replace_fields(
        stage,
        deps=(*(dep for dep in stage.deps if dep not in found), _CODE),
        outs=tuple(out for out in stage.outs if out != stage.metrics),
        metrics=None,
        distributed=False,  # whatever compute.launcher says: its file need not be here
    )


def _require_free(out: Path) -> None:
    if out.exists():
        raise PairError(f"{out}: exists; remove it or name another folder")


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Within it, no other run trains a model for this folder: both would write to one working folder.

    Raises:
        PairError: another one does, or the folder exists.
    """
    file = out.with_name(f".{out.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0)  # released by the kernel when its owner dies
    try:
        lock.acquire()
    except Timeout as error:
        raise PairError(f"{out}: another flywheel rm train is at work on it") from error
    try:
        _require_free(out)  # that run may just have ended
        yield
    finally:
        file.unlink()  # still held: who has opened this file by then sees that it has no name any more
        lock.release()


def train_model(
    kind: Kind,
    pairs: Path,
    out: Path,
    *,
    stage: Stage,
    params: Mapping[str, Any],
    base: str,
    wheels: Path,
    heldout_share: float,
    max_pairs: int | None = None,
) -> dict[str, Any]:
    """Train a reward model on a file of pairs and measure it on held-out users.

    A run that was killed, or that failed after a checkpoint (a full disk), goes on from the last one when it is called
    again with the same arguments and code. What cannot be used leaves nothing behind.

    Args:
        kind: which model.
        pairs: see :func:`read_pair_rows`.
        out: folder for the model; ``metrics.json`` and the curve are put beside its weights.
        stage: the training stage of that kind, from dvc.yaml.
        params: all settings, as in params.yaml.
        base: backbone: a built-in name, a hub id or a folder.
        wheels: folder that keeps wheels of built-in models.
        heldout_share: of users, where the pairs name no purposes.
        max_pairs: of a pairwise model: pairs to train on and to measure on, at most; by default all, whatever the
            settings say.

    Returns:
        the metrics, with ``skipped`` lines of the file and pairs ``left_out`` by ``max_pairs``.

    Raises:
        PairError: the file cannot be used, ``out`` exists, or another run is at work on it.
        BaseModelError: the backbone cannot be used, or cannot be a reward model.
        TrainingError: see :func:`flywheel_tasks.rewards.trainer.train_rows`.
    """
    _require_free(out)
    rows, skipped = read_pair_rows(pairs)
    rows = hold_out(rows, heldout_share, params["seed"])
    table = _checked_table(rows, pairs)
    if kind == "pairwise":
        params = {**params, "pairwise_rm": {**params["pairwise_rm"], "max_pairs": max_pairs or len(rows)}}
    work = out.with_name(f".{out.name}.work")
    with _held(out):
        before = work.exists()  # of a killed run, which may still go on
        try:
            _prepare(work, table, base, params, wheels)
            io = StageIO(_alone(stage, work), work, load_settings(work / "params.yaml", alone=True))
            with one_gpu():
                metrics = dict(_RUN[kind](io))
        except Exception as error:
            # People's texts are in it. Where another try would end the same, or has nothing to go on from, it goes.
            if not before and (isinstance(error, _FINAL) or not any(work.glob(_CHECKPOINTS))):
                shutil.rmtree(work, ignore_errors=True)
            raise
        used = metrics["pairs"]["own"] + metrics["heldout"]["pairs"]
        usable = sum(row["purpose"] in ("reward_train", "reward_heldout") for row in rows)
        metrics |= {"skipped": len(skipped), "left_out": usable - used}
        model = io.out(f"models/{kind}_rm")
        write_json(metrics, model / "metrics.json")
        replace(io.out(f"plots/{kind}_rm.csv"), model / "curve.csv")
        _require_free(out)  # what somebody put there meanwhile would be removed; this run can be called again
        replace(model, out)
        shutil.rmtree(work)
    return metrics


def evaluate_model(model: Path, pairs: Path, compute: Compute) -> dict[str, Any]:
    """Measure a reward model on all pairs of a file, whatever their purpose.

    Raises:
        PairError: the file cannot be used.
        RewardModelError: the folder holds no reward model of this project.
    """
    kind = Limits.load(model).kind
    rows, skipped = read_pair_rows(pairs)
    found = [pair for of_purpose in parse_pairs(rows, pairs).values() for pair in of_purpose]
    if kind == "pointwise":
        margins = pointwise.pointwise_margins(
            PointwiseScorer(model, compute=compute), found, progress="scoring"
        )
    else:
        margins = pairwise.pairwise_margins(PairwiseScorer(model, compute=compute), found, progress="scoring")
    return {"kind": kind, "skipped": len(skipped), **agreement(found, margins)}
