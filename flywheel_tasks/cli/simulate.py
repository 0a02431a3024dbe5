"""``flywheel simulate``: the demo's simulated users and annotators."""

import math
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Simulated users and annotators of the demo.")
console = Console(stderr=True)
Root = Annotated[Path, typer.Option(help="Workspace with params.yaml.")]


def _sampler(model: Path, root: Path) -> Any:
    from flywheel_tasks.policy.sampler import Sampler
    from flywheel_tasks.settings import load_settings

    settings = load_settings(root / "params.yaml")
    with console.status(f"Loading {model}"):
        return Sampler(
            model,
            sampling=settings.sampling,
            compute=settings.compute,
            max_prompt_tokens=settings.prompt.max_tokens,
        )


def _policy_id(model: Path) -> str:
    from flywheel_tasks.storage.digests import tree_digest

    return f"{model.name}@{tree_digest(model).removeprefix('sha256:')[:12]}"


@app.command()
def traffic(
    model: Annotated[Path, typer.Option(help="Policy folder that answers.")],
    out: Annotated[Path, typer.Option(help="Folder of the logs.")],
    root: Root = Path(),
    policy: Annotated[str | None, typer.Option(help="Id logged with replies; default: name, digest.")] = None,
    start_date: Annotated[str | None, typer.Option(help="First day; default: the setting.")] = None,
) -> None:
    """Let simulated users talk to a model and write raw logs (see the section simulation of params.yaml)."""
    from datetime import UTC, datetime

    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.simulation.events import card_events, write_partitions
    from flywheel_tasks.simulation.population import make_population
    from flywheel_tasks.simulation.rule_sets import traffic_cards
    from flywheel_tasks.simulation.traffic import Arm, Schedule, parse_day, simulate

    settings = load_settings(root / "params.yaml")
    plan = settings.simulation
    where = f"{root / 'params.yaml'}: simulation.start_date" if start_date is None else "--start-date"
    start = parse_day(start_date or plan.start_date, where)
    schedule = Schedule(f"traffic-{start}", start, plan.days, plan.turns, settings.seed)
    cards = traffic_cards(plan.rule_sets)
    arm = Arm("base", policy or _policy_id(model), _sampler(model, root))
    users = make_population(settings.seed, plan.users, plan.internal_share, cards)
    events = card_events(cards, datetime.combine(start, datetime.min.time(), UTC), schedule.run)
    events += simulate(users, cards, lambda _: arm, schedule, progress=True)
    paths = write_partitions(events, out, schedule.run, start.isoformat())
    console.print(f"{len(events)} simulated events of {len(users)} users in {len(paths)} partitions of {out}")


@app.command()
def label(
    batch: Annotated[Path, typer.Option(help="batch.jsonl")],
    out: Annotated[Path, typer.Option(help="Where labels.jsonl goes.")],
    seed: Annotated[int, typer.Option(help="Of the annotators' noise.")],
) -> None:
    """Label a batch by simulated annotators."""
    from flywheel_tasks.simulation.annotators import label_batch
    from flywheel_tasks.storage.documents import read_jsonl, write_jsonl

    with console.status("Simulated annotators at work"):
        rows = list(label_batch(read_jsonl(batch), seed))
    write_jsonl(rows, out)
    console.print(f"{len(rows)} simulated labels in {out}")


def _ab_users(plan: Mapping[str, Any], counted: float, most: int) -> int:
    """Users enough for an analysis in each arm, whoever the hash puts there; at least ``most``.

    Half as many again as it needs; and of few so many that three standard deviations fewer (Poisson) are enough.
    """
    share = min(float(arm["share"]) for arm in plan["arms"]) * counted
    needed = plan["rule"]["min_users_per_arm"]
    expected = max(1.5 * needed, ((3 + math.sqrt(9 + 4 * needed)) / 2) ** 2)
    return max(most, math.ceil(expected / share))


def _ab_start(out: Path, run: str, default: date) -> date:
    """The day after the newest partition; a run that was cut short starts on its own first day again."""
    from flywheel_tasks.simulation.events import partition_dates, read_marker

    known = read_marker(out)["runs"].get(run)
    if known is not None:
        return date.fromisoformat(known["start_date"])
    dates = partition_dates(out)
    return date.fromisoformat(dates[-1]) + timedelta(days=1) if dates else default


@app.command()
def ab(
    plan: Annotated[Path, typer.Option(help="launch/running.json")],
    control: Annotated[Path, typer.Option(help="Policy folder of the control arm.")],
    candidate: Annotated[Path, typer.Option(help="Policy folder of the candidate arm.")],
    out: Annotated[Path, typer.Option(help="Folder of the logs.")],
    root: Root = Path(),
    users: Annotated[
        int | None, typer.Option(help="Population; default: enough for ab.min_users_per_arm.")
    ] = None,
) -> None:
    """Let simulated users talk to the two arms of an A/B test; users in no arm leave no logs."""
    from flywheel_tasks.online.assignment import assign
    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.simulation.events import write_partitions
    from flywheel_tasks.simulation.population import User, make_population
    from flywheel_tasks.simulation.rule_sets import traffic_cards
    from flywheel_tasks.simulation.traffic import Arm, Schedule, parse_day, simulate
    from flywheel_tasks.storage.documents import read_json

    settings, launch = load_settings(root / "params.yaml"), read_json(plan)
    run, sim = f"ab-{launch['experiment']}", settings.simulation
    first = parse_day(sim.start_date, f"{root / 'params.yaml'}: simulation.start_date") + timedelta(
        days=sim.days
    )
    schedule = Schedule(
        run, _ab_start(out, run, first), sim.days, sim.turns, settings.seed, str(launch["experiment"])
    )
    folders = {"control": control, "candidate": candidate}
    arms = {
        arm["name"]: Arm(
            arm["name"], f"{launch['generation']}-{arm['name']}", _sampler(folders[arm["name"]], root)
        )
        for arm in launch["arms"]
    }

    included = launch["rule"]["include_sources"]
    shares = {"internal": sim.internal_share, "user": 1 - sim.internal_share}

    def arm_of(user: User) -> Arm | None:
        name = assign(launch, user.user_id) if user.source in included else None
        return None if name is None else arms[name]

    count = users or _ab_users(launch, sum(shares[source] for source in included), sim.users)
    cards = traffic_cards(sim.rule_sets)
    population = make_population(settings.seed, count, sim.internal_share, cards)
    events = simulate(population, cards, arm_of, schedule, progress=True)
    paths = write_partitions(events, out, run, schedule.start.isoformat())
    console.print(
        f"{len(events)} simulated events of the arms of {count} users in {len(paths)} partitions of {out}"
    )


@app.command()
def panel(
    model: Annotated[Path, typer.Option(help="Policy folder that is measured.")],
    out: Annotated[Path, typer.Option(help="JSON Lines, one row a reply.")],
    users: Annotated[int, typer.Option(help="People in each of the three groups.", min=2)],
    root: Root = Path(),
) -> None:
    """Measure a model by the hidden utility on people, characters and wordings that no traffic has."""
    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.simulation.panel import measure
    from flywheel_tasks.storage.documents import write_jsonl

    rule_sets = load_settings(root / "params.yaml").simulation.rule_sets
    rows = measure(_sampler(model, root), users, rule_sets, progress=True)
    write_jsonl(rows, out)
    console.print(f"{len(rows)} replies to the panel of simulated users in {out}")
