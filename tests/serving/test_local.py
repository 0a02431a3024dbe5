"""Models in the gateway's own process: found by digest, loaded in the background, asked together."""

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flywheel_tasks.chat.card import Card
from flywheel_tasks.pipeline.model_files import ModelFilesError, model_folder
from flywheel_tasks.serving import local as local_module
from flywheel_tasks.serving.backend import ModelError, Prompt
from flywheel_tasks.serving.local import LocalModel
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.registry_state import DvcRef
from tests.conftest import PROJECT
from tests.serving.conftest import Live, logged, make_root, model, start_experiment, user_of

CARD = Card("mira", "Mira", ("calm",), ())
SETTINGS = load_settings(PROJECT / "params.yaml")


@pytest.fixture
def local(tiny_models: Path) -> Iterator[LocalModel]:
    made = LocalModel(
        tiny_models / "talker",
        settings=SETTINGS.serve.local,
        sampling=SETTINGS.sampling.model_copy(update={"max_new_tokens": 12}),
        compute=SETTINGS.compute.model_copy(update={"threads": 1}),
        max_prompt_tokens=96,
    )
    yield made
    asyncio.run(made.close())


def prompt(text: str = "Is it stormy?", max_tokens: int = 12) -> Prompt:
    return Prompt(CARD, [{"role": "user", "content": text}], max_tokens)


def test_requests_that_come_together_are_answered_together(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    follow = local._sampler.follow

    def counted(prompts: list[list[int]], *rest: object) -> None:
        batches.append(len(prompts))
        follow(prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(local._sampler, "follow", counted)
    # It waits until it has as many as it takes at once.
    full = local._settings.model_copy(update={"max_batch": 4, "batch_wait_ms": 10_000.0})
    monkeypatch.setattr(local, "_settings", full)

    async def ask() -> list[tuple[str, str | None, int]]:
        limits = [12, 12, 3, 1]
        pieces = await asyncio.gather(*(local.complete(prompt(max_tokens=limit)) for limit in limits))
        return [(piece.text, piece.finish, piece.completion_tokens) for piece in pieces]

    answers = asyncio.run(ask())
    assert batches == [4]
    for (_, finish, tokens), limit in zip(answers, [12, 12, 3, 1], strict=True):
        assert tokens == limit if finish == "length" else tokens < limit


def test_a_long_prompt_keeps_nobody_else_waiting(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()
    read = local_module.prompt_ids

    def slow(*args: Any) -> list[int]:
        assert reached.wait(10), "the event loop stood still"
        return read(*args)

    monkeypatch.setattr(local_module, "prompt_ids", slow)

    async def ask() -> None:
        asked = asyncio.create_task(local.complete(prompt(max_tokens=1)))
        await asyncio.sleep(0.05)
        reached.set()
        await asked

    asyncio.run(ask())


def test_a_model_that_closes_answers_the_prompt_it_reads_and_refuses_the_next(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, begun = threading.Event(), threading.Event()
    read = local_module.prompt_ids

    def slow(*args: Any) -> list[int]:
        begun.set()
        assert closing.wait(10)
        time.sleep(0.1)  # close() is at work meanwhile
        return read(*args)

    monkeypatch.setattr(local_module, "prompt_ids", slow)

    async def ask() -> None:
        asked = asyncio.create_task(local.complete(prompt(max_tokens=1)))
        await asyncio.to_thread(begun.wait, 10)
        closing.set()
        async with asyncio.timeout(10):
            await local.close()
            assert (await asked).finish in ("stop", "length")
            with pytest.raises(ModelError, match="let go"):
                await local.complete(prompt())

    asyncio.run(ask())


def test_a_stream_says_what_the_sampler_drew(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = local._sampler.tokenizer("Grüße, 世界! 🌊 Ahoy.", add_special_tokens=False)["input_ids"]
    ends = [*drawn, local._sampler.tokenizer.eos_token_id]

    def scripted(_: object, __: object, step: Callable[[list[int], list[int]], list[bool]]) -> None:
        for token in ends:
            if step([0], [token])[0]:
                return

    monkeypatch.setattr(local._sampler, "follow", scripted)

    async def ask() -> list[str]:
        return [piece.text async for piece in local.stream(prompt(max_tokens=64))]

    object.__setattr__(local._sampling, "max_new_tokens", 64)
    pieces = asyncio.run(ask())
    assert "".join(pieces) == "Grüße, 世界! 🌊 Ahoy."
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5


def test_a_model_with_broken_weights_fails_and_goes_on(local: LocalModel) -> None:
    weights = local._sampler.model.get_parameter("model.embed_tokens.weight")
    kept = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(float("nan"))
    with pytest.raises(ModelError, match="ValueError"):
        asyncio.run(local.complete(prompt()))
    with torch.no_grad():
        weights.copy_(kept)
    assert asyncio.run(local.complete(prompt())).finish in ("stop", "length")


def test_a_models_files_are_what_the_registry_says(tmp_path: Path, tiny_models: Path) -> None:
    shutil.copytree(tiny_models / "base", tmp_path / "models/policy")
    digest = tree_digest(tmp_path / "models/policy")
    assert model_folder(tmp_path, model("g0001", digest)) == tmp_path / "models/policy"
    other = model("g0002", "sha256:" + "1" * 64)
    with pytest.raises(ModelFilesError, match="no DVC hash"):
        model_folder(tmp_path, other.model_copy(update={"dvc": None}))


@pytest.mark.slow
def test_a_models_files_come_from_dvc(tmp_path: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    for name in (".dvcignore", ".gitignore"):
        shutil.copy(PROJECT / name, tmp_path)
    run("git", "init")
    run("dvc", "init")
    made = tmp_path / "made"
    made.mkdir()
    (made / "model.safetensors").write_text("weights")
    (made / "config.json").write_text("{}")
    digest = tree_digest(made)
    run("dvc", "add", "made")
    md5 = yaml.safe_load((tmp_path / "made.dvc").read_text())["outs"][0]["md5"]
    shutil.rmtree(made)
    wanted = model("g0001", digest).model_copy(update={"dvc": DvcRef(path="models/policy", md5=md5)})
    found = model_folder(tmp_path, wanted)
    assert tree_digest(found) == digest
    left = subprocess.run(
        ["git", "status", "--porcelain", "inputs"], cwd=tmp_path, capture_output=True, check=True
    )
    assert left.stdout == b""


@pytest.mark.slow
def test_arms_of_real_models(tmp_path: Path, tiny_models: Path) -> None:
    """The champion is served from the workspace; a candidate that cannot be loaded is stood in for."""
    shutil.copytree(tiny_models / "talker", tmp_path / "inputs/champion")
    root = make_root(
        tmp_path, "http://unused", champion=tree_digest(tmp_path / "inputs/champion"), backend="local"
    )
    broken = tmp_path / "models/policy"
    shutil.copytree(tiny_models / "base", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    plan = start_experiment(root, digest=tree_digest(broken))
    gateway = Live(root)
    try:
        end = time.monotonic() + 30
        while gateway.client.get("/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        response, parts = gateway.stream("Hi", user=user_of(plan, "control"), max_tokens=6)
        assert response.headers["x-flywheel-model"] == "base"
        assert parts[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        response = gateway.chat("Hi", user=user_of(plan, "candidate"))
        assert response.headers["x-flywheel-fallback"] == "not_ready"
        answer = response.json()
        assert answer["usage"]["prompt_tokens"] > 0
        # A random model may draw the end token first: then the reply is empty, and says that it stopped.
        assert answer["usage"]["completion_tokens"] > 0 or answer["choices"][0]["finish_reason"] == "stop"
        assert gateway.client.get("/readyz").json()["models"] == {"base": "ready", "g0001": "broken"}
    finally:
        gateway.stop()
    assert [row["arm"] for row in logged(root, "exposure")] == ["control"]
