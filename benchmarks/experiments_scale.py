"""Analysis of a big A/B test: 7 days, 10 million users, 200 million events.

Writes synthetic Parquet tables to a scratch folder (once), then measures the whole analysis: who was exposed, what each
did, checks, all metrics raw and with CUPED, day by day, cohorts. The peer does less: one SQL query in DuckDB with the
mean and variance of messages per exposed user, in the same process settings.

    python -m benchmarks.experiments_scale --users 1000000 --events 20000000 --folder /scratch/ab
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import duckdb

START = datetime(2026, 11, 9, tzinfo=UTC)
DAYS, PAST_DAYS = 7, 14
_PART = 10_000_000  # events a file


def _ids(expression: str) -> str:
    """Ids as ingestion writes them: 34 characters."""
    return f"'u_' || md5(cast({expression} as varchar))"


def generate(folder: Path, users: int, events: int) -> None:
    """Write exposures, messages and signals; half of the users in each arm, activity skewed, files by time."""
    con = duckdb.connect()
    con.execute("set preserve_insertion_order = false; set memory_limit = '1500MB'; set threads = 2")
    con.execute(f"set temp_directory = '{folder / 'spill'}'")
    for name in ("exposures", "messages", "signals"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    start = "timestamptz '2026-11-09 00:00:00+00'"
    con.execute(
        f"""copy (select {_ids(f"i % {users}")} as user_id,
            {start} + to_microseconds(cast(random() * {DAYS} * 86400e6 as bigint)) as time, 'user' as source,
            'g0001' as experiment, case when hash(i % {users}) % 2 = 0 then 'control' else 'candidate' end as arm
            from range({2 * users}) t(i))
            to '{folder / "exposures" / "part-0.parquet"}' (format parquet, compression zstd)"""
    )
    signals = events // 10
    for table, total in (("messages", events - signals), ("signals", signals)):
        for part, begin in enumerate(range(0, total, _PART)):
            size = min(_PART, total - begin)
            # Most activity is of few users; the time grows with the file, as logs do.
            who = _ids(f"cast({users} * pow(random(), 2) as bigint)")
            share = f"({begin} + i) / {total}.0"
            when = f"{start} + to_microseconds(cast(({share} * {DAYS + PAST_DAYS} - {PAST_DAYS}) * 86400e6 as bigint))"
            kind = (
                "case when random() < 0.5 then 'user' else 'assistant' end as role"
                if table == "messages"
                else "['thumb_up', 'thumb_down', 'love', 'regenerate'][1 + cast(floor(random() * 4) as int)] as signal"
            )
            con.execute(
                f"""copy (select {who} as user_id, {when} as time, {kind} from range({size}) t(i))
                to '{folder / table / f"part-{part:03d}.parquet"}' (format parquet, compression zstd)"""
            )
    shutil.rmtree(folder / "spill", ignore_errors=True)


def analyse(folder: Path) -> None:
    """The project's analysis; prints nothing but what the parent measures."""
    from flywheel_tasks.online.analysis import analyse_population
    from flywheel_tasks.online.exposed import Window, population
    from flywheel_tasks.online.log_events import open_events
    from flywheel_tasks.settings import load_settings
    from tests.online.people import make_plan

    settings = load_settings(Path("params.yaml"))
    settings = settings.model_copy(update={"ab": settings.ab.model_copy(update={"events": str(folder)})})
    rule = settings.ab.rule  # the tables have no latency
    rule = rule.model_copy(
        update={"guardrails": tuple(name for name in rule.guardrails if name != "latency_ms")}
    )
    plan = make_plan(rule=rule)
    marks = [("start", time.perf_counter())]
    with open_events(settings, Path(), plan) as events:
        made = population(events, Window(START, START + timedelta(days=DAYS)), plan.rule)
        marks.append(("users", time.perf_counter()))
        found = analyse_population(plan, made, simulated=False)
        marks.append(("figures", time.perf_counter()))
    steps = ", ".join(f"{name} {at - before:.1f} s" for (_, before), (name, at) in pairwise(marks))
    print(f"{found['result']}: {sum(found['users'].values()):,} users ({steps}) {found['reasons']}")


def peer(folder: Path) -> None:
    """The least that answers one question: messages per exposed user."""
    with tempfile.TemporaryDirectory() as scratch:
        con = duckdb.connect(str(Path(scratch) / "peer.duckdb"))
        con.execute(f"set memory_limit = '1500MB'; set temp_directory = '{scratch}/spill'")
        con.execute("set preserve_insertion_order = false")
        rows = con.execute(
            f"""with exposed as (select user_id, min(time) as first, min(arm) as arm
                    from '{folder}/exposures/*.parquet' where experiment = 'g0001' group by 1),
                done as (select user_id, count(*) as n from '{folder}/messages/*.parquet' m join exposed using (user_id)
                    where role = 'user' and m.time >= first group by 1)
            select arm, count(*), avg(coalesce(n, 0)), var_samp(coalesce(n, 0))
            from exposed left join done using (user_id) group by 1"""
        ).fetchall()
        print(f"{len(rows)} arms")


def _measured(task: str, folder: Path) -> tuple[float, float, float, str]:
    """Seconds on the clock and of the cores, and peak memory (GiB), of a task in a process of its own."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "benchmarks.experiments_scale", "--task", task, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = done.stdout.strip().splitlines()
    return seconds, cores, float(last[-1]) / 2**20, last[0]


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--events", type=int, default=200_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where the tables are, or are written; by default a scratch folder"
    )
    parser.add_argument("--task", choices=("analyse", "peer"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        {"analyse": analyse, "peer": peer}[given.task](given.folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "signals").exists():
            start = time.perf_counter()
            generate(folder, given.users, given.events)
            size = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 2**30
            print(f"tables: {size:.1f} GiB, written in {time.perf_counter() - start:.0f} s")
        print(f"{given.users:,} users, {given.events:,} events, {os.cpu_count()} cores")
        print(f"{'':10} {'seconds':>8} {'CPU s':>8} {'peak GiB':>9}")
        rows = {task: _measured(task, folder) for task in ("analyse", "peer")}
        for task, (seconds, cores, memory, note) in rows.items():
            print(f"{task:10} {seconds:8.1f} {cores:8.1f} {memory:9.2f}  {note}")
        print(f"ratio {rows['analyse'][1] / rows['peer'][1]:.1f} in CPU time")


if __name__ == "__main__":
    main()
