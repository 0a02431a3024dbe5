"""The round trip with a real Label Studio, in its pages too. It has its own dependencies, so it is installed apart:

python -m venv /tmp/studio && /tmp/studio/bin/pip install label-studio
LABEL_STUDIO=/tmp/studio/bin/label-studio python -m pytest tests/annotation/test_real_label_studio.py
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_tasks.annotation.interface import CANNOT_REWRITE, NO_VIOLATION
from flywheel_tasks.annotation.label import run
from flywheel_tasks.annotation.round_trip import Round, delete_tasks, labels_ready, open_round, pull, push
from flywheel_tasks.annotation.studio import Studio, StudioError
from flywheel_tasks.storage.documents import write_json, write_jsonl
from tests.annotation.exports import filled, result_of
from tests.annotation.tasks_of_tests import task
from tests.pages import chromium

COMMAND = os.environ.get("LABEL_STUDIO", "")
pytestmark = pytest.mark.skipif(
    not COMMAND, reason="LABEL_STUDIO names no label-studio command (docs/annotation.md, What was tested)"
)
MAIL, PASSWORD, LEGACY = "who@example.org", "Secret-123x", "0123456789abcdef0123456789abcdef01234567"
START_SECONDS = 300
TASKS = [
    task("t0", texts=("one", "two <b>bold</b>")),
    task("t1", "reward_heldout", texts=("one", "two", "three"), reviews=2),
    task("t2", "policy", kind="steerability", texts=("one", "two")),
    task("t3", "policy", kind="rewrite", texts=("bad",)),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [*("--username", MAIL), *("--password", PASSWORD), *("--user-token", LEGACY)]
    command = [COMMAND, "start", "--no-browser", "--port", str(port), "--enable-legacy-api-token", *given]
    settings = {"LABEL_STUDIO_BASE_DATA_DIR": str(folder), "COLLECT_ANALYTICS": "false", "SENTRY_DSN": ""}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        try:
            while not _up(url):
                waiting = process.poll() is None and time.monotonic() < end
                assert waiting, (folder / "log").read_text()[-2000:]
                time.sleep(1)
            yield url
        finally:
            process.terminate()


def _up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def work(server: str, make_io: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Round]:
    """A workspace whose people label there; its projects are removed in the end."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    make_io("label", tmp_path, {"label.annotator": "label_studio", "label.label_studio.url": server})
    write_jsonl(TASKS, tmp_path / "data/annotation/batch.jsonl")
    write_json({"generation": "g0001"}, tmp_path / "inputs/generation.json")
    yield open_round(tmp_path)
    for project in _api(server, "GET", "projects/")["results"]:
        _api(server, "DELETE", f"projects/{project['id']}/")


def _api(server: str, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(
        method, f"{server}/api/{path}", headers={"Authorization": f"Token {LEGACY}"}, json=body, timeout=60
    )
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


def _numbers(work: Round) -> dict[str, tuple[int, int]]:
    """Project and number of each task, by our id."""
    with Studio(work.settings.label_studio) as studio:
        return {
            row["data"]["task_id"]: (project["id"], row["id"])
            for project in studio.projects("flywheel ")
            for row in studio.tasks(project["id"])
        }


def _enter(work: Round, server: str, of: Any, by: int | None = None, **entered: Any) -> None:
    _, number = _numbers(work)[of["task_id"]]
    body = {"result": result_of(of, filled(of, **entered))}
    _api(server, "POST", f"tasks/{number}/annotations/", body if by is None else body | {"completed_by": by})


def test_people_label_and_the_stage_uses_what_they_did(
    work: Round, server: str, make_io: Any, tmp_path: Path
) -> None:
    assert labels_ready(work.root)["read"] == 0
    with Studio(work.settings.label_studio) as studio:
        assert [row["added"] for row in push(work, studio)] == [0, 0, 0, 0]
    _enter(work, server, TASKS[0], order=[1, 0], faults=(0,))
    second = _api(server, "POST", "users/", {"email": "second@example.org", "username": "second"})["id"]
    _enter(work, server, TASKS[1], order=[2, 0, 1])
    _enter(work, server, TASKS[1], by=second, order=[2, 1, 0])
    _enter(work, server, TASKS[2], violated={0: ["instruction-1"]})
    _enter(work, server, TASKS[3], rewrite="Better.")
    found = labels_ready(work.root)
    assert (found["read"], found["labels"], found["quarantined"], found["enough"]) == (5, 5, [], True)
    overrides = {"label.annotator": "label_studio", "label.label_studio.url": server}
    metrics = run(make_io("label", tmp_path, overrides))
    assert (metrics["labels"], metrics["annotators"], metrics["simulated"]) == (5, 2, 0)


def test_personal_tokens_deleted_tasks_and_changed_interfaces(
    work: Round, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _api(server, "POST", "token/")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", made["token"])
    with Studio(work.settings.label_studio) as studio:
        push(work, studio)
        first = pull(work, studio)
        settings = work.settings.label_studio
        [row] = studio.projects("flywheel g0001 rewrite")
        place = f"{server}/projects/{row['id']} {row['title']}"
        assert delete_tasks(settings, studio, ["t3", "of nobody"], dry_run=True) == {place: 1}
        assert "t3" in _numbers(work)
        assert delete_tasks(settings, studio, ["t3", "of nobody"]) == {place: 1}
        assert delete_tasks(settings, studio, ["t3"]) == {}
        assert sorted(_numbers(work)) == ["t0", "t1", "t2"]
        assert pull(work, studio) != first
        assert sum(row["added"] for row in push(work, studio)) == 1
        project, _ = _numbers(work)["t3"]
        changed = _api(server, "GET", f"projects/{project}/")["label_config"].replace("Yes", "Sure")
        _api(server, "PATCH", f"projects/{project}/", {"label_config": changed})
        with pytest.raises(StudioError, match="was changed"):
            push(work, studio)


def _page(browser: Any, server: str) -> Any:
    page = browser.new_page(viewport={"width": 1500, "height": 1500})
    page.goto(f"{server}/user/login")
    page.fill("input[name=email]", MAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/login" not in url)
    return page


def _open(page: Any, server: str, project: int) -> None:
    page.goto(f"{server}/projects/{project}/data")
    page.get_by_text("Label All Tasks").click()
    page.locator("input[type=radio]").first.wait_for()


def test_in_the_browser(work: Round, server: str) -> None:
    """What is unanswered is said in the annotator's words, and a rewrite need not be added before it is submitted."""
    with Studio(work.settings.label_studio) as studio:
        push(work, studio)
    numbers = _numbers(work)
    with chromium() as browser:
        page = _page(browser, server)
        _open(page, server, numbers["t0"][0])
        assert page.get_by_text("two <b>bold</b>", exact=True).count() == 1
        submit = page.locator('button:has-text("Submit")').first
        submit.click()
        page.get_by_text("Reply A, not answered: Does it refuse").wait_for()
        page.keyboard.press("Escape")
        for radio in page.locator("label", has_text="No").all():
            radio.click()
        page.get_by_text("Reply B is better").click()
        page.locator("textarea").first.fill("Mine.")
        submit.click()
        page.get_by_text("No More Tasks").or_(page.get_by_text("Update")).first.wait_for()
        _open(page, server, numbers["t2"][0])
        for radio in page.locator("label", has_text="No").all():
            if NO_VIOLATION not in radio.inner_text():
                radio.click()
        for none in page.get_by_text(NO_VIOLATION).all():
            none.click()
        page.get_by_text("Reply A is better").click()
        page.get_by_text(CANNOT_REWRITE).click()
        submit = page.locator('button:has-text("Submit")').first
        submit.click()
        page.get_by_text("No More Tasks").or_(page.get_by_text("Update")).first.wait_for()
    found = labels_ready(work.root)
    assert (found["read"], found["labels"], found["quarantined"]) == (2, 2, [])
    text = "".join(path.read_text() for path in (work.root / work.location).iterdir())
    assert '"Mine."' in text
