"""Looks at a running A/B test over raw logs: the first one, and one a day later, when one day of logs is new.

    python -m benchmarks.looks --events 7000000 --folder /scratch/looks

The logs are those of ``benchmarks.ingestion`` with a latency in every reply, as the gateway writes them: six days, then
the seventh. Each look is a process of its own: it pins the logs, takes what was kept of partitions that it knows, reads
the others, and makes one row a user with all that guardrails and metrics need. Peers: the same with nothing kept, and
DuckDB's ``read_json`` over all files, which does less: messages of each exposed user, and no line is checked.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import duckdb

from benchmarks.ingestion import DAYS, FILE_EVENTS, FIRST, generate

PROJECT = Path(__file__).resolve().parent.parent
LOGS = "data/logs"
_LAST = f"date={FIRST + timedelta(days=DAYS - 1):%Y-%m-%d}"


def make(folder: Path, events: int) -> None:
    """Write a workspace with the logs; the last day lies beside them."""
    logs = folder / LOGS
    shutil.rmtree(folder, ignore_errors=True)
    logs.mkdir(parents=True)
    generate(logs, events)
    for path in logs.rglob("part-*.jsonl"):
        said = b'"role":"assistant",'
        path.write_bytes(path.read_bytes().replace(said, said + b'"latency_ms":812.5,'))
    (logs / _LAST).rename(folder / "last")


def look(folder: Path) -> None:
    """Everything of a look but what it says."""
    from flywheel_tasks.online.analysis import arm_sums
    from flywheel_tasks.online.exposed import Window, population
    from flywheel_tasks.online.log_events import open_events
    from flywheel_tasks.settings import load_settings
    from tests.online.people import make_plan

    settings = load_settings(PROJECT / "params.yaml")
    settings = settings.model_copy(update={"logs": settings.logs.model_copy(update={"location": LOGS})})
    plan = make_plan(rule=settings.ab.rule)
    with open_events(settings, folder, plan) as events:
        made = population(events, Window(FIRST, FIRST + timedelta(days=DAYS)), plan.rule)
        assert made is not None
        sums = arm_sums(made)
    print(f"{sum(arm.n for arm in sums.values()):,} users")


def peer(folder: Path) -> None:
    """The least that answers one question: messages of each exposed user."""
    con = duckdb.connect()
    con.execute("set threads = 2")
    fields = "{type: 'VARCHAR', user_id: 'VARCHAR', role: 'VARCHAR', arm: 'VARCHAR', time: 'TIMESTAMP'}"
    files = f"read_json('{folder / LOGS}/*/part-*.jsonl', format='newline_delimited', columns={fields})"
    rows = con.execute(
        f"""with line as (select * from {files}),
            exposed as (select user_id, min(time) as first, min(arm) as arm from line
                where type = 'exposure' group by 1),
            said as (select user_id, count(*) as n from line join exposed using (user_id)
                where role = 'user' and line.time >= exposed.first group by 1)
        select exposed.arm, count(*), avg(coalesce(n, 0)) from exposed left join said using (user_id) group by 1"""
    ).fetchall()
    print(f"{sum(row[1] for row in rows):,} users")


def _timed(task: str, folder: Path) -> tuple[float, str]:
    command = [sys.executable, "-m", "benchmarks.looks", "--task", task, "--folder", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT)
    said = done.stdout.strip().splitlines()
    return time.perf_counter() - start, f"{said[0]}, peak {float(said[1]) / 2**20:.2f} GiB"


def main() -> None:
    """Make the logs, look at them four times, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=7_000_000)
    parser.add_argument("--folder", type=Path, help="for the logs; by default a scratch folder")
    parser.add_argument("--task", choices=("look", "peer"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        import resource

        {"look": look, "peer": peer}[given.task](given.folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if given.events < DAYS * FILE_EVENTS:
        parser.error(f"--events: at least {DAYS * FILE_EVENTS}, a file a day")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        make(folder, given.events)
        found = {}
        for name, days in (("first look", 6), ("a day later", 7), ("nothing new", 7), ("nothing kept", 7)):
            if name == "a day later":
                (folder / "last").rename(folder / LOGS / _LAST)
            if name == "nothing kept":
                shutil.rmtree(folder / ".flywheel")
            found[name], said = _timed("look", folder)
            print(f"{name}, {days} days: {found[name]:.1f} s, {said}", flush=True)
        found["peer"], said = _timed("peer", folder)
        print(f"DuckDB, 7 days: {found['peer']:.1f} s, {said}")
        later = found["a day later"]
        print(f"ratio: nothing kept {found['nothing kept'] / later:.1f}, DuckDB {found['peer'] / later:.1f}")


if __name__ == "__main__":
    main()
