"""``flywheel ab``: the A/B tests of candidates."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

app = typer.Typer(no_args_is_help=True, help="The A/B tests of candidates.")
# People's words (names, reasons) are shown as they are: nothing in them is markup.
console = Console(highlight=False, markup=False, emoji=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]
By = Annotated[str, typer.Option("--by", help="Your name, for the history.")]
Generation = Annotated[
    str | None, typer.Option("--generation", help="Whose test; may be left out if only one runs.")
]


def _running(root: Path, generation: str | None) -> Any:
    from flywheel_tasks.online.approval import ApprovalError, one_running

    running = one_running(root.resolve(), generation)
    if running is None:
        of = "" if generation is None else f" of generation {generation}"
        raise ApprovalError(f"no experiment{of} is running")
    return running


@app.command()
def plan(
    lift: Annotated[float, typer.Option(help="Smallest lift worth finding, in percent.")],
    root: Root = Path(),
    power: Annotated[float, typer.Option(help="Chance to find it.", min=0.5, max=0.99)] = 0.8,
    write: Annotated[bool, typer.Option("--write", help="Set ab.planned_users in params.yaml.")] = False,
) -> None:
    """How many users and days a lift needs, from past logs; and the rule that will decide."""
    from flywheel_tasks.online.design import make_design, write_planned_users

    design = make_design(root.resolve(), lift_percent=lift, power=power)
    table = Table(
        title=f"Users of both arms for a lift of {lift:g}% (power {power:.0%}, alpha {design['alpha']:g})",
        title_justify="left",
    )
    for heading in ("metric", "mean", "users", "days", "users with CUPED", "days with CUPED"):
        table.add_column(heading)
    for name, row in design["metrics"].items():
        cells = [str(row[key]) if row[key] is not None else "-" for key in ("users", "days")]
        cells += [str(row["cuped"][key]) if row["cuped"] else "-" for key in ("users", "days")]
        table.add_row(name, f"{row['mean']:.4g}", *cells)
    console.print(table)
    console.print(
        f"Past: {design['past']['users']} users in {design['past']['days']} days; "
        f"{design['past']['users_per_day']:.4g} new users a day would be exposed to both arms."
    )
    if design["past"]["later_events"]:
        console.print(
            f"Left out: {design['past']['later_events']} events after these days, of wrong clocks or of a day that "
            "has only begun."
        )
    if design["simulated"]:
        console.print(Text.assemble(("Simulated", "bold"), ": these users are the demo's."))
    if write:
        write_planned_users(root.resolve(), design["planned_users"])
        console.print(f"params.yaml: ab.planned_users is {design['planned_users']}")


@app.command()
def start(by: By, root: Root = Path()) -> None:
    """Start the test of launch/plan.json; its launch must have been approved."""
    from flywheel_tasks.online.launch import start as start_test

    experiment = start_test(root.resolve(), by=by)
    console.print(
        f"Experiment {experiment.plan.experiment} runs until {experiment.ends_at:%Y-%m-%d %H:%M} UTC"
    )


@app.command()
def status(root: Root = Path()) -> None:
    """Show the running tests: arms, looks at the guardrails, and when they end."""
    from flywheel_tasks.online.approval import registry_of

    running = registry_of(root.resolve()).state().all_running()
    if not running:
        console.print("No experiment is running.")
    for experiment in running:
        runs = datetime.now(UTC) < experiment.ends_at
        ends = f"until {experiment.ends_at:%Y-%m-%d %H:%M} UTC" if runs else "over: flywheel ab analyze"
        plan = experiment.plan
        console.print(f"Experiment {plan.experiment} (started by {experiment.started_by}): {ends}")
        for arm in plan.arms:
            console.print(f"  {arm.name}: {arm.model}, {arm.share:.1%} of users,", arm.digest, soft_wrap=True)
        if plan.excludes:
            others = ", ".join(draw.experiment for draw in plan.excludes)
            console.print(f"  layer {plan.layer}, beside {others}: they share no users")
        for check in experiment.checks:
            why = f": {'; '.join(check.reasons)}" if check.reasons else ""
            console.print(f"  day {check.day + 1}: {check.result}{why}")
        if experiment.overrides:
            console.print(f"  overrides for {len(experiment.overrides)} of the staff")


@app.command()
def simulate(root: Root = Path()) -> None:
    """Let simulated users talk to both arms, as the demo does."""
    from flywheel_tasks.online.simulated import simulate_ab

    simulate_ab(root.resolve())


@app.command()
def check(by: By, root: Root = Path(), generation: Generation = None) -> None:
    """Look at the guardrails of a running test and record the look; exit code 4 if it must stop."""
    from flywheel_tasks.online.guardrails import check as look

    name = _running(root, generation).plan.generation
    found = look(root.resolve(), name, by=by)
    console.print(f"Day {found.day + 1}: {found.result}")
    for reason in found.reasons:
        console.print(f"  {reason}")
    if found.result == "stop":
        console.print(f"Next: flywheel ab stop --generation {name} --by NAME --reason WHY")
        raise typer.Exit(4)


@app.command()
def analyze(by: By, root: Root = Path(), generation: Generation = None) -> None:
    """Analyse a test that is over and record the result; exit code 3 if it is invalid."""
    from flywheel_tasks.online.analysis import analyse
    from flywheel_tasks.online.analysis_text import analysis_markdown

    name = _running(root, generation).plan.generation
    found = analyse(root.resolve(), name, by=by)
    console.print(Markdown(analysis_markdown(found)))
    if found["result"] != "valid":
        stop = f"flywheel ab stop --generation {name} --by NAME --reason WHY"
        console.print(f"Nothing can be promoted by it. Next: {stop}")
        raise typer.Exit(3)
    promote = f"flywheel approve promotion --generation {name} --by NAME"
    match found["advice"]:
        case "promote":
            console.print(f"Next: {promote}")
        case "reject":
            console.print(f"Next: {promote} --reject")
        case _:
            console.print(f"The rule leaves it to you. Next: {promote}, or {promote} --reject")


@app.command()
def stop(
    by: By,
    reason: Annotated[str, typer.Option(help="Why, for the history.")],
    root: Root = Path(),
    generation: Generation = None,
) -> None:
    """End a running test before its time: the candidate is dropped, the champion stays."""
    from flywheel_tasks.online.promotion import rollback

    name = _running(root, generation).plan.generation
    rollback(root.resolve(), name, reason, by=by)
    console.print(f"The test of {name} is stopped; its candidate is dropped.")


@app.command()
def override(
    user: Annotated[str, typer.Argument(help="User id, as in the raw logs.")],
    arm: Annotated[
        Literal["control", "candidate", "none", "drawn"], typer.Option(help="drawn: take it back.")
    ],
    by: By,
    root: Root = Path(),
    generation: Generation = None,
) -> None:
    """Give a member of staff an arm of a running test; they are no part of its population."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.online.assignment import staff_key
    from flywheel_tasks.storage.registry_state import Override

    plan = _running(root, generation).plan
    key = staff_key(plan.salt, user)
    item = Override(user=key, arm=None if arm == "none" or arm == "drawn" else arm)
    registry_of(root.resolve()).override(plan.generation, item, by=by, remove=arm == "drawn")
    console.print(f"Experiment {plan.experiment}: {arm} for this user")
