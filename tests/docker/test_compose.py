"""The stack's files hold together. Nothing is started: what only Docker can tell is not tested here."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = PROJECT / "docker/compose.yaml"
SECRET = re.compile(
    r"PASSWORD$|SECRET|TOKEN|FERNET|ACCESS_KEY|_KEY$|ROOT_(USER|PASSWORD)|SQL_ALCHEMY_CONN|RESULT_BACKEND|BROKER_URL|AUTH$"
)
REQUIRED = re.compile(r"\$\{(\w+):\?set \1\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def environments(compose: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            yield name, key, value


def test_yaml_is_clean() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "yamllint", "-s", "docker"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_every_part_is_there(compose: dict[str, Any]) -> None:
    commands = {
        name: " ".join(map(str, service.get("command", []))) for name, service in compose["services"].items()
    }
    for part in ("api-server", "scheduler", "dag-processor", "triggerer"):
        assert commands[part] == part
    assert "--queues ${FLYWHEEL_CPU_QUEUES:-cpu}" in commands["worker-cpu"]
    assert "--queues gpu" in commands["worker-gpu"]
    assert {"postgres", "redis", "store"} <= set(compose["services"])


def test_the_queues_are_those_of_the_graph(compose: dict[str, Any]) -> None:
    from flywheel_tasks.pipeline.graph import load_graph

    queues = {stage.queue for stage in load_graph(PROJECT / "dvc.yaml").values()}
    workers = (compose["services"][name]["command"] for name in ("worker-cpu", "worker-gpu"))
    served = " ".join(command[command.index("--queues") + 1] for command in workers)
    assert queues == {"cpu", "gpu"}
    assert all(re.search(rf"\b{queue}\b", served) for queue in queues)


def test_services_refer_to_what_is_defined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (COMPOSE.parent / source).resolve() == PROJECT, (
                name,
                volume,
            )
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"]).resolve() == PROJECT
            assert (PROJECT / service["build"]["dockerfile"]).is_file()


def test_dependencies_that_must_be_healthy_have_a_check(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][needed]


def test_no_secret_is_written_down_or_has_a_default(compose: dict[str, Any]) -> None:
    found = [(key, value) for _, key, value in environments(compose) if SECRET.search(key)]
    assert len({key for key, _ in found}) >= 10
    for key, value in found:
        assert REQUIRED.search(value), f"{key} is not taken from a required variable"
        assert not re.search(r"\$\{\w+:?-", value), f"{key} has a default"
    for line in COMPOSE.read_text(encoding="utf-8").splitlines():
        for variable in re.findall(r"\$\{(\w+)", line):
            if SECRET.search(variable) or variable == "FLYWHEEL_S3_KEY":
                assert REQUIRED.search(line), line


def test_the_readme_makes_every_required_secret() -> None:
    readme = (COMPOSE.parent / "README.md").read_text(encoding="utf-8")
    for variable in set(REQUIRED.findall(COMPOSE.read_text(encoding="utf-8"))):
        assert variable.removeprefix("FLYWHEEL_") in readme, variable


def test_ports_are_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.search(r":[^:}]+\}?$", service["image"])
        assert not service["image"].endswith(":latest")


def test_airflow_knows_every_option(compose: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "import json; from airflow.configuration import conf; "
        "known = conf.configuration_description; "
        "print(json.dumps({name: list(body['options']) for name, body in known.items()}))"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    known = json.loads(result.stdout.splitlines()[-1])
    options = {key for _, key, _ in environments(compose) if key.startswith("AIRFLOW__")}
    assert len(options) >= 10
    for option in options:
        section, _, key = option.removeprefix("AIRFLOW__").lower().partition("__")
        if section != "celery":  # its provider is in the image only
            assert key in known[section], option


def test_the_image_is_not_root_and_takes_pinned_releases() -> None:
    text = (PROJECT / "docker/Dockerfile").read_text(encoding="utf-8")
    instructions = [
        line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")
    ]
    users = [line.split()[1] for line in instructions if line.startswith("USER")]
    assert "ARG UID=1000" in instructions
    assert users == ["${UID}:0"]
    installs = [line for line in instructions if "pip install" in line]
    assert installs
    assert all(line.count("pip install") == line.count("--constraint constraints.txt") for line in installs)
    for line in instructions:
        if line.startswith("COPY"):
            *sources, _ = [part for part in line.split()[1:] if not part.startswith("--")]
            assert all((PROJECT / source).exists() for source in sources), line
    pins = (PROJECT / "docker/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", pin) for pin in pins if not pin.startswith("#"))


def enters_the_image(path: str) -> bool:
    """Whether a file of the checkout is copied, by Docker's rules: the last line that matches it or a parent counts."""
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    parts, kept = path.split("/"), True
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parents = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if pattern.startswith("**/"):
            matched = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            matched = any(
                fnmatch(item, pattern) and item.count("/") == pattern.count("/") for item in parents
            )
        kept = line.startswith("!") if matched else kept
    return kept


# Each holds, or may hold, the text of users, a model, a secret, or who approved what.
KEPT_OUT = (
    ".git/HEAD",
    ".venv/bin/python",
    ".airflow/passwords.json",
    ".dvc/cache/files/md5/ab/cd",
    ".dvc/tmp/rwlock",
    ".dvc/config.local",
    ".flywheel/remote/files/md5/ab/cd",
    ".flywheel/cache/ingest/a.parquet",
    "campaigns/default/workspace/data/logs/date=2026-11-02/part-000.jsonl",
    "campaigns/cache/files/md5/ab/cd",
    "data/logs/date=2026-11-02/part-000.jsonl",
    "docker/.env",
    "docker/keys.env",
    "dvc.lock.broken",
    "gate/report.html",
    "inputs/champion/model.safetensors",
    "inputs/earlier_pairs/g0001.parquet",
    "launch/plan.json",
    "metrics/gate.json",
    "models/policy/model.safetensors",
    "plots/rl.csv",
    "registry/changes/00000001.json",
    "report/index.html",
    # What README.md tells people to leave at the top.
    "replies.jsonl",
    "pairs.parquet",
    "my-rm/model.safetensors",
    ".env",
    "flywheel_tasks/__pycache__/a.pyc",
)


@pytest.mark.parametrize("path", KEPT_OUT)
def test_chat_models_and_secrets_stay_out_of_the_image(path: str) -> None:
    assert not enters_the_image(path)


def test_what_git_ignores_stays_out_of_the_image() -> None:
    for line in (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines():
        assert not enters_the_image(line.strip("/").replace("*", "x") + "/a"), line


def test_code_and_settings_enter_the_image() -> None:
    from flywheel_tasks.pipeline.graph import load_graph, project_sources

    sources = project_sources(load_graph(PROJECT / "dvc.yaml"))
    needed = [".dvc/config", "dags/weekly_generation.py", "docker/make_bucket.py", "docker/requirements.txt"]
    needed += ["README.md", "constraints.txt", "dvc.yaml", "params.yaml", "pyproject.toml"]
    for source in sources:
        inside = sorted(path for path in (PROJECT / source).rglob("*") if path.is_file())
        inside = [path for path in inside if "__pycache__" not in path.parts]
        needed += [path.relative_to(PROJECT).as_posix() for path in inside] or [source]
    assert [path for path in needed if not enters_the_image(path)] == []


@pytest.mark.parametrize("path", ["docker/.env", "docker/keys.env"])
def test_secrets_stay_out_of_git(path: str) -> None:
    result = subprocess.run(["git", "check-ignore", "-q", path], cwd=PROJECT, check=False)
    assert result.returncode == 0, f"{path} holds secrets and must be ignored by git"


def test_whoever_works_for_the_flywheel_gets_the_keys_of_other_services(compose: dict[str, Any]) -> None:
    """Without a file of keys nothing fails: the demo needs none."""
    ours = {name for name, service in compose["services"].items() if "flywheel" in str(service.get("image"))}
    assert {"worker-cpu", "worker-gpu", "scheduler", "triggerer", "gateway"} <= ours
    for name in ours:
        assert compose["services"][name]["env_file"] == [{"path": "keys.env", "required": False}], name


def test_the_s3_store_is_a_default_and_an_empty_address_is_that_of_aws(compose: dict[str, Any]) -> None:
    found = {value for _, key, value in environments(compose) if key == "AWS_ENDPOINT_URL"}
    assert found == {"${FLYWHEEL_S3_ENDPOINT-http://store:9000}"}  # with :- an empty one would be the store's
