"""Which days' logs a generation reads, and which late files."""

import gzip
import shutil
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from flywheel_tasks.pipeline.pinned_data import pinned_logs
from flywheel_tasks.settings import load_settings
from flywheel_tasks.traffic.logs import pin_logs
from tests.conftest import PROJECT
from tests.traffic.sample import write_log


def paths(document: dict) -> list[str]:
    return [item["path"] for item in document["partitions"]]


def windowed(root: Path, today: date, earlier: Iterable[dict] = (), late_days: int = 28) -> dict:
    return pin_logs("data/logs", root, newest_days=7, today=today, earlier=earlier, late_days=late_days)


def test_weekly_windows_meet_without_a_gap_whatever_the_hour(tmp_path):
    """Every Monday at three o'clock: what is logged in the rest of that day belongs to the next generation."""
    opened: list[dict] = []
    for monday in (date(2026, 11, 9), date(2026, 11, 16), date(2026, 11, 23)):
        for back in range(8):
            for hour in range(24) if back else range(3):
                write_log(tmp_path, [b"a\n"], f"date={monday - timedelta(days=back)}/{hour:02d}.jsonl")
        opened.insert(0, windowed(tmp_path, monday, opened))
        assert opened[0]["since"] == str(monday - timedelta(days=7))
    read = [path for document in opened for path in paths(document)]
    assert len(read) == len(set(read)) == 3 * 7 * 24


def test_a_first_day_that_is_not_over_is_read_where_there_is_no_other(tmp_path):
    write_log(tmp_path, [b"a\n"], "date=2026-11-09/a.jsonl")
    assert paths(windowed(tmp_path, date(2026, 11, 9))) == ["date=2026-11-09/a.jsonl"]


def test_late_files_of_days_that_were_read_are_read_once_however_many_weeks_late(tmp_path):
    opened: list[dict] = []
    write_log(tmp_path, [b"a\n"], "date=2026-11-01/before-the-first.jsonl")
    for number in range(6):
        monday = date(2026, 11, 9) + timedelta(weeks=number)
        write_log(tmp_path, [b"a\n"], f"date={monday - timedelta(days=1)}/a.jsonl")
        late = [f"{number}\n".encode()]  # 6, 13, ... days before the window
        write_log(tmp_path, late, f"date=2026-11-03/late-{number}.jsonl")
        opened.insert(0, windowed(tmp_path, monday, opened))
    read = [[path for path in paths(document) if "a.jsonl" not in path] for document in reversed(opened)]
    expected = [[f"date=2026-11-03/late-{number}.jsonl"] for number in range(5)]
    assert read == [*expected, []], "the sixth is more than four weeks late"


@pytest.mark.parametrize(("late_days", "elsewhere"), [(0, False), (5, False), (28, True)])
def test_no_file_is_late_beyond_the_setting_or_of_another_place(tmp_path, late_days, elsewhere):
    write_log(tmp_path, [b"a\n"], "date=2026-11-08/a.jsonl")
    first = windowed(tmp_path, date(2026, 11, 9))
    write_log(tmp_path, [b"a\n"], "date=2026-11-03/late.jsonl")
    write_log(tmp_path, [b"a\n"], "date=2026-11-15/a.jsonl")
    earlier = [{**first, "location": "elsewhere"}] if elsewhere else [first]
    second = windowed(tmp_path, date(2026, 11, 16), earlier, late_days)
    assert paths(second) == ["date=2026-11-15/a.jsonl"]
    assert second["since"] == "2026-11-09"


def test_what_generations_of_long_ago_read_is_not_looked_at(tmp_path):
    for day in ("10-26", "11-30"):
        write_log(tmp_path, [b"a\n"], f"date=2026-{day}/a.jsonl")
    asked: list[int] = []

    def earlier() -> Iterator[dict]:
        for number in range(3):
            asked.append(number)
            partition = {"path": "date=2026-10-25/x.jsonl", "sha256": "sha256:0"}
            yield {"location": "data/logs", "since": None, "partitions": [partition]}

    assert windowed(tmp_path, date(2026, 12, 1), earlier())["unread"] == ["2026-10-26"]
    assert asked == [0, 1], "the newest, whose window must meet this one's, and where the search ends"


@pytest.mark.parametrize("location", ["./data/logs", "data/../data/logs/", "{root}/data/logs"])
def test_a_place_spelled_otherwise_is_the_same_place(tmp_path, location):
    write_log(tmp_path, [b"a\n"], "date=2026-11-08/a.jsonl")
    first = windowed(tmp_path, date(2026, 11, 9))
    write_log(tmp_path, [b"b\n"], "date=2026-11-03/late.jsonl")
    write_log(tmp_path, [b"c\n"], "date=2026-11-15/a.jsonl")
    spelled = location.format(root=tmp_path)
    second = pin_logs(
        spelled, tmp_path, newest_days=7, today=date(2026, 11, 16), earlier=[first], late_days=28
    )
    assert paths(second) == ["date=2026-11-03/late.jsonl", "date=2026-11-15/a.jsonl"]


def test_what_was_read_is_not_late_under_a_new_name_or_packed(tmp_path):
    day = tmp_path / "data/logs/date=2026-11-08"
    for name in ("a", "b", "c"):
        write_log(tmp_path, [f"{name}\n".encode()], f"date=2026-11-08/{name}.jsonl")
    first = windowed(tmp_path, date(2026, 11, 9))
    (day / "a.jsonl").rename(day / "renamed.jsonl")
    (day / "b.jsonl.gz").write_bytes(gzip.compress((day / "b.jsonl").read_bytes()))
    (day / "b.jsonl").unlink()
    (day / "c.jsonl.gz").write_bytes(gzip.compress(b"not what c.jsonl holds, which is still there\n"))
    shutil.copy(day / "c.jsonl", day / "copy.jsonl")
    write_log(tmp_path, [b"d\n"], "date=2026-11-15/a.jsonl")
    second = windowed(tmp_path, date(2026, 11, 16), [first])
    assert paths(second) == ["date=2026-11-08/c.jsonl.gz", "date=2026-11-15/a.jsonl"]


@pytest.mark.parametrize("longer", [0, 1, 3])
def test_windows_meet_where_a_generation_takes_longer_than_they_last(tmp_path, longer):
    opened: list[dict] = []
    start = date(2026, 11, 2)
    for day in range(3 * (7 + longer) + 1):
        today = start + timedelta(days=day)
        write_log(tmp_path, [f"{day}\n".encode()], f"date={today}/a.jsonl")
        if day and day % (7 + longer) == 0:
            opened.insert(0, windowed(tmp_path, today, opened))
    assert opened[-1]["since"] == str(start + timedelta(days=longer)), "the first reads the newest days only"
    read = [path for document in reversed(opened) for path in paths(document)]
    days = range(longer, 3 * (7 + longer))
    assert read == [f"date={start + timedelta(days=day)}/a.jsonl" for day in days]
    assert [document["unread"] for document in opened] == [[]] * 3


def test_a_generation_that_is_opened_early_reads_the_newest_days_all_the_same(tmp_path):
    for day in range(1, 9):
        write_log(tmp_path, [f"{day}\n".encode()], f"date=2026-11-{day:02d}/a.jsonl")
    first = windowed(tmp_path, date(2026, 11, 9))
    for day in range(9, 13):
        write_log(tmp_path, [f"{day}\n".encode()], f"date=2026-11-{day:02d}/a.jsonl")
    second = windowed(tmp_path, date(2026, 11, 12), [first])
    assert (second["since"], second["until"]) == ("2026-11-05", "2026-11-11")


def test_days_that_no_window_reaches_are_told_and_not_late(tmp_path):
    """After a long pause a generation reads as far back as the setting says, not the whole pause."""
    for day in range(1, 31):
        write_log(tmp_path, [f"{day}\n".encode()], f"date=2026-11-{day:02d}/a.jsonl")
    first = windowed(tmp_path, date(2026, 12, 1))
    assert (first["since"], first["until"]) == ("2026-11-24", "2026-11-30")
    earlier = {**first, "since": "2026-11-02", "until": "2026-11-08", "partitions": first["partitions"][:1]}
    for late_days, since in ((0, 24), (5, 19), (15, 9), (28, 9)):
        second = windowed(tmp_path, date(2026, 12, 1), [earlier], late_days)
        late = range(max(2, 24 - late_days), 9)
        assert [int(path[13:15]) for path in paths(second)] == [*late, *range(since, 31)]
        assert second["since"] == f"2026-11-{since:02d}"
        assert second["unread"] == [f"2026-11-{day:02d}" for day in range(9, since)]
    assert first["unread"] == [], "days before the first generation are nobody's"


def test_simulated_weeks_are_of_the_newest_days_whatever_was_read(tmp_path):
    settings = load_settings(PROJECT / "params.yaml")
    assert settings.logs.source == "simulated"
    for day in range(1, 31):
        write_log(tmp_path, [f"{day}\n".encode()], f"date=2026-11-{day:02d}/a.jsonl")
    earlier = pin_logs("data/logs", tmp_path, newest_days=7) | {"since": "2026-11-02", "until": "2026-11-08"}
    assert pinned_logs(settings, tmp_path, [earlier])["since"] == "2026-11-24"


def test_only_the_newest_days_are_pinned_and_whether_there_are_earlier_ones_is_noted(tmp_path):
    for day in (1, 3, 4):
        write_log(tmp_path, [b"a\n"], f"date=2026-11-0{day}/a.jsonl")
    for days, first, earlier in ((1, "04", True), (3, "03", True), (4, "01", False), (None, "01", False)):
        pinned = pin_logs("data/logs", tmp_path, newest_days=days)
        assert pinned["partitions"][0]["path"] == f"date=2026-11-{first}/a.jsonl"
        assert pinned["earlier"] is earlier


def test_a_generation_names_the_days_that_none_reads(tmp_path, caplog):
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    assert "source: simulated" in text
    (tmp_path / "params.yaml").write_text(text.replace("source: simulated", "source: files"))
    settings = load_settings(tmp_path / "params.yaml")
    for day in (*range(1, 25), 31):
        write_log(tmp_path, [f"{day}\n".encode()], f"date=2026-10-{day:02d}/a.jsonl")
    write_log(tmp_path, [b"newest\n"], "date=2026-11-20/a.jsonl")
    earlier = {"location": "data/logs", "since": "2026-10-02", "until": "2026-10-08"}
    partition = {"path": "date=2026-10-02/a.jsonl", "sha256": "sha256:0"}
    pinned = pinned_logs(settings, tmp_path, [{**earlier, "partitions": [partition]}])
    assert (pinned["since"], pinned["unread"][0]) == ("2026-10-17", "2026-10-09")
    told = "no generation reads the logs of 8 days, 2026-10-09 to 2026-10-16: this one begins with 2026-10-17"
    assert told in caplog.text
