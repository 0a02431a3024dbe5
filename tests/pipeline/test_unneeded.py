"""What nothing reads again goes from DVC's cache; what the registry may ask for stays."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.pipeline.generation_ids import BusyError
from flywheel_tasks.pipeline.unneeded import UnneededError, clean
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.registry import PAIRS, REWARD_MODELS, open_registry
from flywheel_tasks.storage.registry_state import DvcRef, RegistryError
from tests.privacy.test_stored_copies import left, put
from tests.storage.registry_parts import BASE, NEW, approve_launch, model, plan

GENERATIONS = ("g0001", "g0002", "g0003", "g0004")


def tree(home: Path, name: str) -> tuple[str, set[str]]:
    """A folder of two files, one of which every folder has; its DVC hash, and its objects that are its own."""
    own = put(home, f"weights of {name}".encode())
    files = [{"md5": own, "relpath": "model"}, {"md5": put(home, b"tokenizer"), "relpath": "tokenizer.json"}]
    listing = put(home, json.dumps(files).encode(), ".dir")
    return listing, {own, listing}


def model_of(home, generation, name, digest):
    md5, objects = tree(home, name)
    return model(generation, digest).model_copy(update={"dvc": DvcRef(path=name, md5=md5)}), objects


@pytest.fixture
def checkout(make_workspace, tmp_path, monkeypatch):
    """A base model that is champion, a running test of g0001, four generations' judges, and what nobody names."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = make_workspace(tmp_path / "w", {})
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, check=True)
    with (root / ".dvc/config").open("a") as config:
        config.write("['remote \"storage\"']\n    url = ../../remote\n")
    return root


@pytest.fixture
def objects(checkout):
    """What is in the cache and in the remote, by what it is."""
    registry, made = open_registry("registry", checkout), {}
    for home in (checkout / ".dvc/cache", checkout.parent / "remote"):
        base, made["base"] = model_of(home, "base", "base", BASE)
        candidate, made["candidate"] = model_of(home, "g0001", "candidate", NEW)
        judges = {}
        for name in GENERATIONS:
            judges[name], made[f"judge {name}"] = model_of(
                home, name, f"judge {name}", bytes_digest(name.encode())
            )
        pairs = put(home, b"pairs")
        made["pairs"] = {pairs}
        mine, made["mine"] = tree(home, "mine")
        _, made["sft of long ago"] = tree(home, "sft of long ago")
        made["table of long ago"] = {put(home, b"a table")}
        made["shared"] = {put(home, b"tokenizer")}
    registry.bootstrap(base, by="setup")
    approve_launch(registry)
    registry.start_experiment(plan(), candidate, by="ada", duration=timedelta(days=7))
    for name, judge in judges.items():
        kept = json.dumps({"pointwise": judge.model_dump(mode="json")}).encode()
        registry.put_generation(name, REWARD_MODELS, kept)
    ref = base.model_copy(update={"dvc": DvcRef(path="pairs.parquet", md5=pairs)}).model_dump(mode="json")
    registry.put_generation("g0001", PAIRS, json.dumps({"ref": ref, "pairs": 1}).encode())
    pointer = {"outs": [{"md5": mine, "hash": "md5", "path": "mine"}]}
    (checkout / "mine.dvc").write_text(yaml.safe_dump(pointer))
    return made


KEPT = {"base", "candidate", "judge g0003", "judge g0004", "pairs", "mine", "shared"}


def stays(objects):
    return set().union(*(objects[name] for name in KEPT))


def cached(root):
    return left(root / ".dvc/cache/files")


def call(root, *words):
    done = CliRunner().invoke(app, ["registry", "gc", *words, "--root", str(root)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def decline(root, generation):
    words = ["registry", "decline", generation, "--by", "ada", "--reason", "it failed", "--root", str(root)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_what_nobody_will_ask_for_goes_and_the_rest_stays(checkout, objects):
    cache, before = checkout / ".dvc/cache", cached(checkout)
    gone = before - stays(objects)
    size = sum(
        path.stat().st_size for path in (cache / "files").rglob("*") if path.parent.name + path.name in gone
    )
    shown = call(checkout)
    assert cached(checkout) == before, "it is only shown"
    assert "base" in shown
    assert "Next: the same with --remove" in shown
    found = clean(checkout, open_registry("registry", checkout), remove=True)
    assert (found.objects, found.bytes, found.lost) == (len(gone), size, [])
    assert cached(checkout) == stays(objects)
    assert left(checkout.parent / "remote/files") == before, "of the remote nothing was asked"
    assert not (checkout / "inputs/registered").exists()
    assert "Cache: 0 objects" in call(checkout, "--remove")


def test_a_champion_of_any_time_stays(checkout, objects):
    registry = open_registry("registry", checkout)
    registry.rollback("g0001", "no", by="ada")
    found = clean(checkout, registry, remove=True)
    assert any(name.startswith("champion-base") for name in found.kept)
    assert objects["base"] <= cached(checkout)
    assert not objects["candidate"] & cached(checkout), "it was rolled back"


@pytest.mark.parametrize("decided", ["declined", "here", "no"])
def test_while_a_generation_that_was_left_behind_is_undecided_nothing_goes(checkout, objects, decided):
    """Its model may be waiting for an approval, and nothing here names it any more."""
    registry, before = open_registry("registry", checkout), cached(checkout)
    registry.put_generation("g0003", "inputs.json", b"{}")
    if decided == "declined":
        decline(checkout, "g0003")
    if decided == "here":
        write_json({"generation": "g0003"}, checkout / "inputs/generation.json")
    if decided == "no":
        with pytest.raises(UnneededError, match=r"not decided yet: g0003\..*registry decline g0003 --by"):
            clean(checkout, registry, remove=True)
        assert cached(checkout) == before
    else:
        assert clean(checkout, registry, remove=True).objects
        assert cached(checkout) == stays(objects)


def test_only_a_generation_that_is_there_and_was_never_launched_can_be_given_up(checkout, objects):
    registry = open_registry("registry", checkout)
    registry.put_generation("g0003", "inputs.json", b"{}")
    for _ in range(2):
        assert decline(checkout, "g0003").output == "g0003 is declined.\n"
    last = registry.history()[-1]
    assert (last.by, last.detail) == ("ada", {"generation": "g0003", "reason": "it failed"})
    with pytest.raises(RegistryError, match="the registry knows no generation g0030"):
        decline(checkout, "g0030")
    with pytest.raises(RegistryError, match="the test of g0001 is running already"):
        decline(checkout, "g0001")
    assert registry.history()[-1] == last


def test_where_the_registry_is_another_one_nothing_goes(checkout, objects):
    before = cached(checkout)
    with pytest.raises(UnneededError, match="knows no champion"):
        clean(checkout, open_registry("elsewhere", checkout), remove=True)
    assert cached(checkout) == before


def test_what_is_lost_is_named_and_keeps_nothing_from_going(checkout, objects):
    for home in (checkout / ".dvc/cache", checkout.parent / "remote"):
        for name in objects["candidate"]:
            (home / "files/md5" / name[:2] / name[2:]).unlink()
    output = call(checkout, "--remove")
    assert "Lost: candidate-g0001" in output
    assert not objects["sft of long ago"] & cached(checkout)


def test_a_listing_that_only_the_remote_has_is_brought_before_anything_goes(checkout, objects):
    listing = next(name for name in objects["base"] if name.endswith(".dir"))
    (checkout / ".dvc/cache/files/md5" / listing[:2] / listing[2:]).unlink()
    clean(checkout, open_registry("registry", checkout), remove=True)
    assert objects["base"] <= cached(checkout)


def test_where_dvc_cannot_tell_what_is_needed_nothing_goes(checkout, objects, monkeypatch):
    """What the workspace itself names has no listing any more; nobody is asked whether that matters."""
    monkeypatch.setattr("dvc.prompt.confirm", lambda *_: True)
    listing = next(name for name in objects["mine"] if name.endswith(".dir"))
    for home in (checkout / ".dvc/cache", checkout.parent / "remote"):
        (home / "files/md5" / listing[:2] / listing[2:]).unlink()
    before = cached(checkout)
    with pytest.raises(UnneededError, match="nothing is removed"):
        clean(checkout, open_registry("registry", checkout), remove=True)
    assert cached(checkout) == before
    assert not (checkout / "inputs/registered").exists()


def test_a_cache_that_others_share_is_left_alone(checkout, objects, tmp_path):
    with (checkout / ".dvc/config").open("a") as config:
        config.write(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    with pytest.raises(UnneededError, match="what others there need is unknown"):
        clean(checkout, open_registry("registry", checkout), remove=True)


def test_while_a_stage_is_at_work_nothing_goes(checkout, objects):
    before = cached(checkout)
    (checkout / ".flywheel/locks").mkdir(parents=True, exist_ok=True)
    with (
        FileLock(checkout / ".flywheel/locks/sft.lock"),
        pytest.raises(BusyError, match="stage sft is at work"),
    ):
        clean(checkout, open_registry("registry", checkout), remove=True)
    assert cached(checkout) == before


def test_what_a_tag_of_git_names_stays(checkout, objects):
    def git(*words):
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *who, *words], cwd=checkout, check=True, capture_output=True)

    listing = next(name for name in objects["sft of long ago"] if name.endswith(".dir"))
    config = checkout / ".dvc/config"
    config.write_text(config.read_text().replace("no_scm = True", ""))
    git("init", "-q")
    old = checkout / "old.dvc"
    old.write_text(yaml.safe_dump({"outs": [{"md5": listing, "hash": "md5", "path": "old"}]}))
    git("add", "-f", "old.dvc")
    git("commit", "-qm", "one")
    git("tag", "g0001")
    git("rm", "-q", "old.dvc")
    git("commit", "-qm", "two")
    clean(checkout, open_registry("registry", checkout), remove=True)
    assert objects["sft of long ago"] <= cached(checkout)
    assert stays(objects) <= cached(checkout), "what git does not know, too"
    assert not objects["table of long ago"] & cached(checkout)
