"""A workspace with a champion and a running experiment, a stub for the models, and a gateway before them."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.serving.keys import add_key
from flywheel_tasks.storage.registry_state import Analysis, Arm, DvcRef, ModelRef, Plan
from flywheel_tasks.traffic.events import parse_line
from tests.conftest import PROJECT
from tests.serving.stub import Served, Stub

VERDICT = "sha256:" + "e" * 64
CARDS = [
    {
        "event_id": f"e-card-{name.lower()}",
        "type": "card",
        "time": "2026-11-02T09:00:00Z",
        "source": "internal",
        "card_id": name.lower(),
        "name": name,
        "traits": ["a lighthouse keeper"],
        "instructions": ["Never use emoji."],
    }
    for name in ("Mira", "Tomas")
]


def model(name: str, digest: str | None = None) -> ModelRef:
    return ModelRef(
        generation=name,
        digest=digest or "sha256:" + (name[-1] * 64 if name[-1] in "0123456789abcdef" else "0" * 64),
        dvc=DvcRef(path="models/policy", md5="0" * 32 + ".dir"),
        code_version="abc",
        data_version="base",
    )


def start_experiment(
    root: Path,
    generation: str = "g0001",
    share: float = 0.5,
    digest: str | None = None,
    layer: str = "policy",
    duration: timedelta = timedelta(days=7),
) -> Plan:
    """Put a candidate into an A/B test against the champion, as `flywheel ab start` does."""
    registry = registry_of(root)
    champion = registry.state().champion
    assert champion is not None
    candidate = model(generation, digest)
    plan = Plan(
        experiment=generation,
        generation=generation,
        salt=f"salt-{generation}",
        layer=layer,
        arms=(
            Arm(name="control", share=share, model=champion.generation, digest=champion.digest),
            Arm(name="candidate", share=share, model=generation, digest=candidate.digest),
        ),
        verdict_digest=VERDICT,
        model_digest=candidate.digest,
    )
    registry.record_approval(
        "launch",
        generation=generation,
        model_digest=candidate.digest,
        verdict_digest=VERDICT,
        decision="approve",
        by="ada",
    )
    registry.start_experiment(plan, candidate, by="ada", duration=duration)
    return plan


def promote(root: Path, generation: str) -> None:
    """Make the candidate of a running test champion, as `flywheel approve promotion` does."""
    registry, digest = registry_of(root), "sha256:" + "d" * 64
    found = Analysis(result="valid", digest=digest, reasons=(), advice="promote")
    registry.record_analysis(generation, found, by="ada")
    registry.record_approval(
        "promotion",
        generation=generation,
        model_digest=registry.state().candidates[generation].digest,
        analysis_digest=digest,
        decision="approve",
        by="ada",
    )
    registry.promote(generation, by="ada")


def make_root(root: Path, upstream: str, champion: str = "sha256:" + "b" * 64, **overrides: Any) -> Path:
    """A workspace whose gateway asks ``upstream``; its champion is ``base``."""
    names = {
        "backend": "upstream",
        "upstream.url": f"{upstream}/v1",
        "cards": "cards.jsonl",
        "poll_seconds": 0.1,
        "timeout_seconds": 20.0,  # a busy machine alone makes no model fail
        "upstream.connect_seconds": 20.0,
        "breaker.failures": 3,
        "breaker.seconds": 0.5,
        "rate.per_minute": 100000.0,
        "rate.burst": 1000,
        **overrides,
    }
    settings = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    settings["compute"]["threads"] = 1
    for name, value in names.items():
        section, _, last = f"serve.{name}".rpartition(".")
        place = settings
        for part in section.split("."):
            place = place[part]
        assert last in place, name
        place[last] = value
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(PROJECT / "safety_words", root / "safety_words")
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write_cards(root, CARDS)
    registry_of(root).bootstrap(model("base", champion), by="setup")
    return root


def write_cards(root: Path, cards: Sequence[dict[str, Any]]) -> None:
    (root / "cards.jsonl").write_bytes(b"".join(orjson.dumps(card) + b"\n" for card in cards))


def logged(root: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Events of all log files, open ones too, each line checked; by time."""
    rows = []
    for path in sorted((root / "data/served").glob("date=*/*.jsonl")):
        if not path.name.startswith(".torn"):
            for line in path.read_bytes().splitlines():
                event = parse_line(line)
                if kind in (None, event.type):
                    rows.append({**orjson.loads(line), "type": event.type})
    return sorted(rows, key=lambda row: row["time"])


def user_of(plan: Plan, arm: str | None) -> str:
    """A user whom the draw puts into an arm."""
    from flywheel_tasks.online.assignment import assign

    document = plan.model_dump(mode="json")
    return next(name for name in (f"user-{n}" for n in range(10_000)) if assign(document, name) == arm)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Live:
    """A gateway that serves, in this process."""

    def __init__(self, root: Path, **more: Any) -> None:
        from flywheel_tasks.serving.app import create_app
        from flywheel_tasks.serving.gateway import open_gateway

        self.root = root
        self.keys = {
            role: add_key(root / ".flywheel/serve/keys.json", role, role, None)[1]
            for role in ("user", "staff")
        }
        self.keys["ann"] = add_key(root / ".flywheel/serve/keys.json", "ann", "user", "ann")[1]
        self.gateway = open_gateway(root, **more)
        self.served = Served(create_app(self.gateway))
        self.client = httpx.Client(base_url=self.served.url, timeout=30)

    def post(self, path: str, body: Any, role: str = "user", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[role]}"}
        return self.client.post(path, json=body, headers=headers, **more)

    def characters(self, role: str = "ann") -> list[dict[str, Any]]:
        """What is listed of the characters."""
        headers = {"authorization": f"Bearer {self.keys[role]}"}
        return self.client.get("/v1/models", headers=headers).json()["data"]

    def chat(self, *said: str, user: str = "ann", role: str = "user", **more: Any) -> httpx.Response:
        """``chat("hello")``; further texts are the reply and the next message, by turns."""
        roles = ["user", "assistant"] * len(said)
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        body = {"model": "character:mira", "messages": messages, "user": user, **more}
        return self.post("/v1/chat/completions", body, role)

    def stream(self, *said: str, **more: Any) -> tuple[httpx.Response, list[dict[str, Any]]]:
        response = self.chat(*said, stream=True, **more)
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        return response, [orjson.loads(line) for line in lines if line != "[DONE]"]

    @contextmanager
    def open_stream(self, said: str) -> Iterator[Iterator[str]]:
        """Lines of a reply to ann as they come; the client goes away at the end of the block."""
        body = {"model": "character:mira", "messages": [{"role": "user", "content": said}], "stream": True}
        headers = {"authorization": f"Bearer {self.keys['ann']}"}
        with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            yield (line for line in response.iter_lines() if line)

    @contextmanager
    def leaving(self, path: str, body: bytes, length: int | None = None) -> Iterator[None]:
        """A request that is sent, its body up to here; the client goes away at the end of the block."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {self.keys['user']}\r\n"
            f"Content-Length: {length or len(body)}\r\n\r\n"
        )
        with socket.create_connection((self.client.base_url.host, self.client.base_url.port)) as connection:
            connection.sendall(head.encode() + body)
            yield

    def counted(self, path: str, status: int) -> int:
        """Requests of this path that ended so."""
        start = f'flywheel_requests_total{{path="{path}",status="{status}"}} '
        lines = self.gateway.metrics.render().splitlines()
        return sum(int(line.removeprefix(start)) for line in lines if line.startswith(start))

    def stop(self) -> None:
        self.client.close()
        self.served.stop()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway's first look waits for models that are there, however busy the machine is."""
    from flywheel_tasks.serving import following

    monkeypatch.setattr(following, "_SOON_SECONDS", 20.0)


@pytest.fixture(scope="session")
def stub_server() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    served = Served(stub)
    yield stub, served.url
    served.stop()


@pytest.fixture
def stub(stub_server: tuple[Stub, str]) -> Stub:
    stub = stub_server[0]
    stub.modes.clear()
    stub.replies.clear()
    stub.asked.clear()
    stub.seconds = stub.pace = 0.0
    stub.served = None
    return stub


@pytest.fixture
def root(stub_server: tuple[Stub, str], stub: Stub, tmp_path: Path) -> Path:
    """The workspace, without an experiment."""
    return make_root(tmp_path, stub_server[1])


@pytest.fixture
def make_live(stub_server: tuple[Stub, str], stub: Stub, tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """``make_live(classifier=..., max_in_flight=1)`` starts a gateway with settings of its own."""
    started: list[Live] = []

    def start(classifier: Any = None, cards: Sequence[dict[str, Any]] = CARDS, **overrides: Any) -> Live:
        root = make_root(tmp_path / "own", stub_server[1], **overrides)
        write_cards(root, cards)
        started.append(Live(root, classifier=classifier))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def live(root: Path) -> Iterator[Callable[..., Live]]:
    """``live()`` starts a gateway in the workspace."""
    started: list[Live] = []

    def start(**more: Any) -> Live:
        started.append(Live(root, **more))
        return started[-1]

    yield start
    for one in started:
        one.stop()
