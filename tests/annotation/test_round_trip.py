"""The round trip over HTTP, against a stand-in that behaves as Label Studio's API is documented (studio_stand_in)."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from flywheel_tasks.annotation import studio as studio_module
from flywheel_tasks.annotation.label import run
from flywheel_tasks.annotation.label_studio import task_data
from flywheel_tasks.annotation.round_trip import (
    delete_tasks,
    export,
    groups,
    labels_ready,
    open_round,
    pull,
    push,
    status,
)
from flywheel_tasks.annotation.studio import Studio, StudioError
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.cli.app import app
from flywheel_tasks.storage.documents import write_json, write_jsonl
from flywheel_tasks.storage.objects import FolderStore, open_store
from tests.annotation.exports import annotation, filled
from tests.annotation.studio_stand_in import LEGACY, StandIn, serve
from tests.annotation.tasks_of_tests import task

TASKS = [
    *(task(f"t{k}", texts=(f"one {k}", f"two {k}")) for k in range(3)),
    task("t3", "reward_heldout", texts=("one", "two"), reviews=2),
    task("t4", "policy", kind="steerability", texts=("one", "two")),
    task("t5", "policy", kind="rewrite", texts=("bad",)),
]


@pytest.fixture(params=[False, True], ids=["at once", "in the background"])
def stand_in(request):
    state = StandIn(background=request.param)
    server = serve(state)
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def work(stand_in, make_io, tmp_path, monkeypatch):
    """A workspace whose people label in the stand-in."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setattr(studio_module, "_POLL_SECONDS", 0.0)
    overrides = {"label.annotator": "label_studio", "label.label_studio.url": stand_in.url + "/"}
    make_io("label", tmp_path, overrides)
    write_jsonl(TASKS, tmp_path / "data/annotation/batch.jsonl")
    write_json({"generation": "g0001"}, tmp_path / "inputs/generation.json")
    return open_round(tmp_path)


def client(work, waits=None):
    return Studio(work.settings.label_studio, wait=(waits if waits is not None else []).append)


def test_a_second_push_adds_nothing(work, stand_in):
    with client(work) as studio:
        first, second = push(work, studio), push(work, studio)
    assert [row["added"] for row in first] == [row["tasks"] for row in first]
    assert [row["added"] for row in second] == [0] * len(first)
    assert sorted(row["data"]["task_id"] for row in stand_in.tasks.values()) == [t["task_id"] for t in TASKS]
    assert len(stand_in.projects) == 4  # comparisons with one and with two reviews, steerability, rewrites
    assert {row["maximum_annotations"] for row in stand_in.projects.values()} == {1, 2}
    assert all(
        row["data"] == task_data(TASKS[int(row["data"]["task_id"][1])]) for row in stand_in.tasks.values()
    )


def test_a_push_that_was_cut_short_goes_on(work, stand_in):
    with client(work) as studio:
        push(work, studio)
        lost = [number for number, row in stand_in.tasks.items() if row["data"]["task_id"] in ("t1", "t4")]
        for number in lost:
            del stand_in.tasks[number]
        rows = push(work, studio)
    assert sum(row["added"] for row in rows) == 2
    assert len({row["data"]["task_id"] for row in stand_in.tasks.values()}) == len(TASKS)


def test_what_was_done_without_an_answer_is_not_done_twice(work, stand_in):
    stand_in.lost = [504, 504, 500]  # a project, its tasks, the next project
    with client(work) as studio:
        push(work, studio)
    assert not stand_in.lost
    assert len(stand_in.projects) == 4
    assert sorted(row["data"]["task_id"] for row in stand_in.tasks.values()) == [t["task_id"] for t in TASKS]


def test_a_server_that_never_answers_an_import_is_an_error(work, stand_in):
    def nothing(*_):
        return 504, {"detail": "too late"}

    stand_in.import_tasks = nothing
    waits = []
    with (
        client(work, waits) as studio,
        pytest.raises(StudioError, match="HTTP 504; it may have been carried out"),
    ):
        push(work, studio)
    assert waits == [2.0, 4.0, 8.0, 16.0]


def test_copies_of_a_task_that_nobody_has_labelled_go(work, stand_in):
    with client(work) as studio:
        push(work, studio)
        for number, row in list(stand_in.tasks.items()):
            stand_in.tasks[number + 1000] = {**row, "id": number + 1000, "annotations": []}
        stand_in.tasks[1001]["annotations"] = [{"id": 1}]  # somebody has labelled this copy
        push(work, studio)
    assert sorted(row["data"]["task_id"] for row in stand_in.tasks.values()) == [t["task_id"] for t in TASKS]
    assert 1001 in stand_in.tasks
    assert 1 not in stand_in.tasks


def test_many_tasks_go_page_by_page(work, stand_in, monkeypatch):
    monkeypatch.setattr(studio_module, "_PAGE", 2)
    monkeypatch.setattr(studio_module, "_IMPORT_ROWS", 2)
    with client(work) as studio:
        push(work, studio)
        assert sum(row["added"] for row in push(work, studio)) == 0
    imports = [path for method, path in stand_in.requests if path.endswith("/import")]
    assert len(imports) == 5


def label_everything(stand_in):
    number = 0
    for of in TASKS:
        for who in range(of["reviews"]):
            number += 1
            values = filled(of, rewrite="better" if of["kind"] == "rewrite" else None)
            stand_in.annotate(of["task_id"], annotation(of, values, number=number, by=who + 1))


def test_people_label_and_the_stage_uses_what_they_did(work, stand_in, make_io, tmp_path):
    waiting = labels_ready(work.root)
    assert (waiting["enough"], waiting["read"]) == (False, 0)
    label_everything(stand_in)
    found = labels_ready(work.root)
    assert (found["enough"], found["read"], found["labels"], found["done"]) == (True, 7, 7, 1.0)
    overrides = {"label.annotator": "label_studio", "label.label_studio.url": stand_in.url}
    metrics = run(make_io("label", tmp_path, overrides))
    assert (metrics["labels"], metrics["simulated"], metrics["annotators"]) == (7, 0, 2)
    assert all(row["done"] == row["labelled"] for row in metrics["tasks"].values())


@pytest.fixture(scope="module")
def bucket(s3_server):
    s3_server.create_bucket(Bucket="labels")


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_newer_pull_takes_the_place_of_the_older_one(work, stand_in, request, tmp_path, place):
    if place == "s3":
        request.getfixturevalue("bucket")
        location = f"s3://labels/{tmp_path.name}/{{generation}}"
        work = replace(work, settings=work.settings.model_copy(update={"location": location}))
    store = open_store(work.location, work.root)
    store.create("label-studio-10-of-another.json", b"[]")
    store.create("mine.json", b"[]")
    with client(work) as studio:
        push(work, studio)
        first = pull(work, studio)
        label_everything(stand_in)
        second = pull(work, studio)
        assert pull(work, studio) == second
        assert status(work)["labels"] == 7
    assert len(first) == len(second) == 4
    assert store.list("") == sorted([*second, "label-studio-10-of-another.json", "mine.json"])
    assert not set(first) & set(second)
    assert status(work)["quarantined"] == []


def test_a_pull_that_is_killed_leaves_the_newest_export(work, stand_in, monkeypatch):
    def killed(store, key):
        raise KeyboardInterrupt

    with client(work) as studio:
        push(work, studio)
        first = pull(work, studio)
        label_everything(stand_in)
        with monkeypatch.context() as patch:
            patch.setattr(FolderStore, "delete", killed)
            with pytest.raises(KeyboardInterrupt):
                pull(work, studio)
        left = open_store(work.location, work.root).list("")
        second = pull(work, studio)
    assert set(left) == {*first, second[0]}
    assert open_store(work.location, work.root).list("") == sorted(second)


@pytest.mark.parametrize("kind", ["legacy", "personal"])
def test_both_kinds_of_tokens(work, stand_in, monkeypatch, kind):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY if kind == "legacy" else stand_in.personal)
    with client(work) as studio:
        push(work, studio)
        assert stand_in.refreshed == (0 if kind == "legacy" else 1)
        stand_in.access = "expired"
        assert sum(row["added"] for row in push(work, studio)) == 0
    assert stand_in.refreshed == (0 if kind == "legacy" else 2)


def test_a_missing_or_refused_token_is_said_without_showing_it(work, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret-token-of-nobody")
    with client(work) as studio, pytest.raises(StudioError, match="HTTP 401") as caught:
        push(work, studio)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.b.c")
    with client(work) as studio, pytest.raises(StudioError, match="personal access token is refused"):
        push(work, studio)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    with pytest.raises(StudioError, match="LABEL_STUDIO_API_KEY is not set"):
        client(work)


def test_a_server_that_is_busy_is_asked_again_and_one_that_stays_so_is_an_error(work, stand_in):
    waits = []
    stand_in.failures = [503, 429]
    with client(work, waits) as studio:
        push(work, studio)
    assert waits[:2] == [2.0, 4.0]
    stand_in.failures = [500] * 5
    with client(work, waits) as studio, pytest.raises(StudioError, match="HTTP 500, 5 attempts"):
        push(work, studio)


def test_a_server_that_is_not_there_is_an_error(work, make_io):
    settings = work.settings.label_studio.model_copy(update={"url": "http://127.0.0.1:9"})
    with Studio(settings, wait=lambda _: None) as studio, pytest.raises(StudioError, match="ConnectError"):
        push(work, studio)


def test_an_interface_that_somebody_changed_is_noticed(work, stand_in):
    with client(work) as studio:
        push(work, studio)
        stand_in.projects[1]["label_config"] = stand_in.projects[1]["label_config"].replace("Yes", "Sure")
        with pytest.raises(StudioError, match=r"interface of project 'flywheel g0001 .*' was changed"):
            push(work, studio)


def test_a_pull_before_the_push_says_so(work):
    with client(work) as studio, pytest.raises(StudioError, match="flywheel annotation push"):
        pull(work, studio)


def test_an_import_that_fails_in_the_background_is_an_error(work, stand_in):
    if not stand_in.background:
        pytest.skip("this edition imports at once")
    stand_in.job = lambda number: (200, {"status": "failed", "error": "broken file"})
    with client(work) as studio, pytest.raises(StudioError, match="failed: broken file"):
        push(work, studio)


def test_commands(work, stand_in, monkeypatch):
    root = ["--root", str(work.root)]
    out = work.root / "out"
    exported = CliRunner().invoke(app, ["annotation", "export", str(out), *root])
    assert exported.exit_code == 0, exported.output
    assert len(list(out.glob("*.json"))) == len(list(out.glob("*.xml"))) == 4
    assert "data/labels/g0001" in exported.output.replace("\n", "")
    pushed = CliRunner().invoke(app, ["annotation", "push", *root])
    assert pushed.exit_code == 0, pushed.output
    label_everything(stand_in)
    pulled = CliRunner().invoke(app, ["annotation", "pull", *root])
    assert pulled.exit_code == 0, pulled.output
    assert "7 labels read = 7 used + 0 quarantined. 100% of the tasks are done" in pulled.output
    (work.root / "data/labels/g0001/more.json").write_text(
        json.dumps([{"id": 1, "data": {"task_id": "t9"}, "annotations": [annotation(TASKS[0], {}, by=3)]}])
    )
    shown = CliRunner().invoke(app, ["annotation", "status", *root])
    assert "8 labels read = 7 used + 1 quarantined" in shown.output
    assert (
        "unknown_task: data/labels/g0001/more.json, entry 0, annotation 1, task t9"
        in shown.output.replace("\n", " ").replace("  ", " ")
    )


def test_tasks_are_deleted_by_our_ids_in_the_projects_of_all_generations(work, stand_in, monkeypatch):
    monkeypatch.setattr(studio_module, "_PAGE", 2)
    root = ["--root", str(work.root)]
    with client(work) as studio:
        push(work, studio)
        push(replace(work, generation="g0002"), studio)
        settings = work.settings.label_studio
        elsewhere = settings.model_copy(update={"project": "fly"})
        assert delete_tasks(elsewhere, studio, ["t1"]) == {}, "another team's, whose name begins so"
        assert delete_tasks(settings, studio, []) == {}
    shown = CliRunner().invoke(app, ["annotation", "delete", "t1", "t3", "t9", "--dry-run", *root])
    assert shown.exit_code == 0, shown.output
    assert "4 tasks would be deleted" in shown.output
    assert len(stand_in.tasks) == 2 * len(TASKS)
    done = CliRunner().invoke(app, ["annotation", "delete", "t1", "t3", "t9", *root])
    assert "4 tasks deleted" in done.output
    assert sorted(row["data"]["task_id"] for row in stand_in.tasks.values()) == sorted(
        2 * ["t0", "t2", "t4", "t5"]
    )
    assert "0 tasks deleted" in CliRunner().invoke(app, ["annotation", "delete", "t1", *root]).output


def test_exported_files_hold_every_task_once_with_its_interface(tmp_path):
    made = export(TASKS, tmp_path / "out")
    assert [group.name for group in made] == [group.name for group in groups(TASKS)]
    ids = []
    for group in made:
        rows = json.loads((tmp_path / "out" / f"{group.name}.json").read_text())
        assert {row["data"]["interface"] for row in rows} == {group.name.rsplit("-x", 1)[0]}
        assert (tmp_path / "out" / f"{group.name}.xml").read_text() == group.interface
        ids += [row["data"]["task_id"] for row in rows]
    assert sorted(ids) == [of["task_id"] for of in TASKS]


def test_without_a_batch_the_message_says_what_to_run(tmp_path):
    with pytest.raises(AnnotationError, match="flywheel generation open"):
        open_round(tmp_path)
    write_json({"generation": "g0001"}, tmp_path / "inputs/generation.json")
    with pytest.raises(AnnotationError, match="dvc repro annotation_batch"):
        open_round(tmp_path)
