"""``flywheel registry``, ``flywheel approve``, ``flywheel rollback``: who is champion and who decided so."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

app = typer.Typer(no_args_is_help=True, help="The champion, the candidate, and every change of them.")
approve_app = typer.Typer(no_args_is_help=True, help="Answer for a launch or a promotion.")
# People's words (names, reasons) are shown as they are: nothing in them is markup.
console = Console(highlight=False, markup=False, emoji=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]
By = Annotated[str, typer.Option("--by", help="Your name, for the history.")]
Reject = Annotated[bool, typer.Option("--reject", help="Answer no.")]
Yes = Annotated[bool, typer.Option("--yes", help="At a terminal: do not ask before it is recorded.")]
Generation = Annotated[
    str | None, typer.Option("--generation", help="Whose test; may be left out if only one runs.")
]


def _short(version: str) -> str:
    """The beginning of a digest or commit, as git shows it; what is no such thing (a base model's name) stays."""
    kind, _, digest = version.rpartition(":")
    found = re.fullmatch(r"([0-9a-f]{12})[0-9a-f]{20,}(\.dir|-dirty)?", digest)
    return (
        version
        if found is None
        else f"{kind}:{found[1]}".lstrip(":") + ("-dirty" if found[2] == "-dirty" else "")
    )


@app.command()
def show(
    root: Root = Path(), full: Annotated[bool, typer.Option(help="Whole digests and versions.")] = False
) -> None:
    """Show the champion, the candidate and the experiments."""
    from flywheel_tasks.online.approval import registry_of

    state = registry_of(root.resolve()).state()
    table = Table(title="Models", title_justify="left")
    for heading in ("", "generation", "model", "DVC", "code", "data"):
        table.add_column(heading, overflow="fold")
    candidates = [("candidate", model) for _, model in sorted(state.candidates.items())]
    for role, model in (("champion", state.champion), *candidates, ("previous", state.previous)):
        if model is not None:
            md5 = model.dvc.md5 if model.dvc else "none"
            versions = (model.digest, md5, model.code_version, model.data_version)
            table.add_row(role, model.generation, *(map(str, versions) if full else map(_short, versions)))
    console.print(table if table.row_count else "The registry is empty: no generation has run.")
    for name, experiment in state.experiments.items():
        analysis = experiment.analysis.result if experiment.analysis else "none"
        console.print(
            f"Experiment {name}: {experiment.status}, {experiment.started_at:%Y-%m-%d %H:%M} to "
            f"{experiment.ends_at:%Y-%m-%d %H:%M} UTC, analysis: {analysis}"
        )


@app.command()
def history(root: Root = Path()) -> None:
    """Show every change, oldest first."""
    from flywheel_tasks.online.approval import registry_of

    table = Table()
    for heading in ("#", "at (UTC)", "by", "change", "detail"):
        table.add_column(heading, overflow="fold")
    for change in registry_of(root.resolve()).history():
        detail = ", ".join(f"{key}={value}" for key, value in change.detail.items())
        table.add_row(str(change.sequence), f"{change.at:%Y-%m-%d %H:%M:%S}", change.by, change.kind, detail)
    console.print(table)


@app.command()
def card(generation: str, root: Root = Path()) -> None:
    """Print the model card of a launched or declined generation, as the registry has it now."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.online.model_card import make_card

    typer.echo(make_card(registry_of(root.resolve()), generation))


@app.command()
def publish(
    generation: str,
    out: Annotated[Path, typer.Option(help="Folder to make: the model's files and README.md.")],
    root: Root = Path(),
) -> None:
    """Copy a generation's model and its card to a folder, ready for a model hub."""
    from flywheel_tasks.online.model_card import publish as publish_model

    console.print(f"{publish_model(root.resolve(), generation, out)} and the model's files beside it")


@app.command()
def decline(
    generation: Annotated[str, typer.Argument(help="e.g. g0002; the workspace need not hold it.")],
    by: By,
    reason: Annotated[str, typer.Option(help="Why, for the history.")],
    root: Root = Path(),
) -> None:
    """Give up a generation that was never launched: one that failed, or that another champion came before."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.online.promotion import decline as give_up
    from flywheel_tasks.storage.registry_state import RegistryError

    if generation not in registry_of(root.resolve()).generations():
        raise RegistryError(f"the registry knows no generation {generation}")
    _no_test_yet(root.resolve(), generation)
    give_up(root.resolve(), generation, reason, by=by)
    console.print(f"{generation} is declined.")


@app.command()
def gc(
    root: Root = Path(),
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; else it is only shown.")] = False,
) -> None:
    """Free DVC's cache of data and models that nothing will read again (never plain `dvc gc`: it knows no champion)."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.pipeline.unneeded import clean

    found = clean(root.resolve(), registry_of(root.resolve()), remove=remove)
    console.print(f"Kept, as the registry may ask for them: {', '.join(found.kept) or 'nothing'}")
    console.print("Kept, too: what this workspace has made last, and what git's branches and tags name.")
    for name in found.lost:
        console.print(f"Lost: {name}; neither the cache nor a remote has it")
    done = "removed" if remove else "not needed any more"
    console.print(f"Cache: {found.objects} objects, {found.bytes / 1e9:.2f} GB {done}")
    if not remove and found.objects:
        console.print("Next: the same with --remove")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm(question: str, yes: bool) -> None:
    """Let a person read before it is done; a script is not asked."""
    if not yes and _at_a_terminal():
        typer.confirm(question, abort=True)


def _no_test_yet(root: Path, generation: str) -> None:
    """A no to a launch comes too late for a model that has been launched: it would change nothing in silence."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.storage.registry_state import RegistryError

    tested = registry_of(root).state().tested(generation)
    if tested is not None and tested.status == "running":
        stop = f"flywheel ab stop --generation {generation} --by NAME --reason WHY"
        raise RegistryError(f"the test of {generation} is running already; to end it: {stop}")
    if tested is not None:
        raise RegistryError(
            f"{generation} has been tested already ({tested.status}); there is no launch to reject"
        )


def _answer(
    root: Path,
    kind: Literal["launch", "promotion"],
    by: str,
    reject: bool,
    generation: str | None,
    yes: bool,
) -> str:
    from flywheel_tasks.online.approval import ApprovalError, record_answer, request_of

    shown = request_of(root.resolve(), kind, generation, refusing=reject)
    if generation not in (None, shown.generation):
        raise ApprovalError(f"the workspace holds {shown.generation}, not {generation}")
    if kind == "launch" and reject:
        _no_test_yet(root.resolve(), shown.generation)
    console.print(Markdown(shown.body))
    asked = f"{'Reject' if reject else 'Approve'} the {kind} of {shown.generation} as {by}?"
    _confirm(asked, yes)
    record_answer(root.resolve(), shown, decision="reject" if reject else "approve", by=by)
    answer = ("rejected", "red") if reject else ("approved", "green")
    console.print(
        Text.assemble(f"The {kind} of {shown.generation} is ", answer, f"; recorded as {by}'s answer.")
    )
    return shown.generation


@approve_app.command()
def launch(
    by: By,
    root: Root = Path(),
    reject: Reject = False,
    generation: Annotated[
        str | None, typer.Option("--generation", help="Refuse if the workspace holds another one.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Approve (or reject) that the gated model goes into an A/B test."""
    from flywheel_tasks.online.promotion import decline

    name = _answer(root, "launch", by, reject, generation, yes)
    if reject:
        decline(root.resolve(), name, f"launch not approved: reject by {by}", by=by)


@approve_app.command()
def promotion(
    by: By, root: Root = Path(), reject: Reject = False, generation: Generation = None, yes: Yes = False
) -> None:
    """Approve (or reject) that the tested model becomes champion, and do it."""
    from flywheel_tasks.online.promotion import promote
    from flywheel_tasks.online.promotion import rollback as roll_back

    name = _answer(root, "promotion", by, reject, generation, yes)
    if reject:
        roll_back(root.resolve(), name, f"promotion not approved: reject by {by}", by=by)
        console.print("The candidate is dropped; the champion stays.")
    else:
        console.print(f"Champion: {promote(root.resolve(), name, by=by).generation}")


@app.command()
def rollback(
    by: By,
    reason: Annotated[str, typer.Option(help="Why, for the history.")],
    root: Root = Path(),
    champion: Annotated[
        bool, typer.Option("--champion", help="Go back to the champion before; running tests end.")
    ] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", help="With --champion: to this earlier one instead (`base`: the first)."),
    ] = None,
    generation: Generation = None,
    yes: Yes = False,
) -> None:
    """Drop the candidate and end its A/B test; with --champion, make the previous champion champion again."""
    from flywheel_tasks.online.approval import one_running
    from flywheel_tasks.online.promotion import rollback as roll_back
    from flywheel_tasks.storage.registry_state import RegistryError

    if to is not None and not champion:
        raise RegistryError("--to names a champion: it goes with --champion")
    if champion:
        _restore(root.resolve(), reason, by, to, yes)
        return
    running = one_running(root.resolve(), generation)
    if running is None:
        raise RegistryError("no experiment is running; --champion goes back to the champion before")
    roll_back(root.resolve(), running.plan.generation, reason, by=by)
    console.print(f"The candidate of {running.plan.generation} is dropped; the champion stays.")


def _restore(root: Path, reason: str, by: str, to: str | None, yes: bool) -> None:
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.online.promotion import restore

    before = registry_of(root).state()
    running = ", ".join(test.plan.generation for test in before.all_running())
    ends = f", and the tests that run end, their candidates are dropped: {running}" if running else ""
    _confirm(f"{to or 'The champion before'} becomes champion again{ends}. Go on?", yes)
    found = restore(root, reason, by=by, to=to)
    assert before.champion is not None
    champion = found.state.champion
    assert champion is not None
    console.print(f"Champion: {champion.generation}")
    for generation in found.ended:
        console.print(f"The test of {generation} is ended; its candidate is dropped.")
    for generation, why in found.cardless.items():
        console.print(f"The card of {generation} is not kept: {why}", markup=False)
    if found.cardless:
        again = f"flywheel rollback --champion --to {champion.generation} --by NAME --reason WHY"
        console.print(f"To keep it once that is mended: {again} (it is refused, and keeps the cards)")
    back = f"flywheel rollback --champion --to {before.champion.generation} --by NAME --reason WHY"
    console.print(f"To take it back: {back}" + (" (tests stay ended)" if found.ended else ""))
