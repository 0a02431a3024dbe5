"""``flywheel rm``: train and measure a reward model on a file of preference pairs, without a generation."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Reward models on a file of preference pairs.")
console = Console(highlight=False)

Root = Annotated[
    Path,
    typer.Option("--root", help="Folder of params.yaml and dvc.yaml, for the settings.", file_okay=False),
]
Pairs = Annotated[
    Path,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Preference pairs: .parquet as data/preferences/pairs.parquet, or .jsonl[.gz] as hh-rlhf.",
    ),
]
_SHOWN = {
    "accuracy": "accuracy",
    "accuracy_alike": "accuracy on replies of like length and emoji count",
    "accuracy_by_length": "accuracy of 'the longer reply is better'",
    "brier": "Brier score (0.25 knows nothing)",
    "calibration_error": "expected calibration error",
}


def _cell(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "no such pairs"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f}  ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _show(title: str, measured: dict[str, Any]) -> None:
    table = Table("measure", "value (95% interval by user)", "pairs", title=title, title_justify="left")
    for key, name in _SHOWN.items():
        table.add_row(name, _cell(measured[key]), str(measured[key]["n"]))
    console.print(table)


@app.command()
def train(
    pairs: Pairs,
    out: Annotated[Path, typer.Option(help="Folder for the model; it must not exist.", file_okay=False)],
    kind: Annotated[
        Literal["pointwise", "pairwise"], typer.Option(help="Scalar of a reply, or judge of two.")
    ] = ("pointwise"),
    base: Annotated[str | None, typer.Option(help="Backbone: built-in name, hub id or folder.")] = None,
    heldout: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of users to measure on.")] = 0.1,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Instead of the setting.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-9, help="Instead of the setting.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs a step, instead of the setting.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=16, help="Prompt (three quarters at most) and reply, instead of the settings."),
    ] = None,
    max_pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs that a pairwise model is trained and measured on; by default all."),
    ] = None,
    root: Root = Path(),
) -> None:
    """Train a reward model and measure it on users held out; a killed run goes on when called again."""
    from flywheel_tasks.pipeline.graph import load_graph
    from flywheel_tasks.pipeline.stage_io import STATE
    from flywheel_tasks.rewards.pairs import PairError
    from flywheel_tasks.rewards.standalone import train_model
    from flywheel_tasks.settings import load_settings

    if max_pairs is not None and kind != "pairwise":
        raise PairError("--max-pairs is of --kind pairwise; a pointwise model takes all pairs")
    load_settings(root / "params.yaml", alone=True)  # its own errors first
    from flywheel_tasks.storage.fast_yaml import load_yaml

    params = load_yaml((root / "params.yaml").read_text(encoding="utf-8"))
    changes = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
    }
    params[f"{kind}_rm"] |= {key: value for key, value in changes.items() if value is not None}
    if max_tokens is not None:  # or a prompt would be no longer than the policy's
        params["prompt"]["max_tokens"] = max(params["prompt"]["max_tokens"], max_tokens)
    metrics = train_model(
        kind,
        pairs,
        out,
        stage=load_graph(root / "dvc.yaml")[f"train_{kind}_rm"],
        params=params,
        base=base or params["base"]["policy"],
        wheels=root / STATE / "wheels",
        heldout_share=heldout,
        max_pairs=max_pairs,
    )
    console.print(
        f"{kind} reward model: {metrics['train']['pairs']} pairs, {metrics['train']['steps']} steps, loss "
        f"{metrics['train']['loss_first']:.3f} to {metrics['train']['loss_last']:.3f}; "
        f"{metrics['skipped']} lines skipped"
    )
    if metrics["left_out"]:
        console.print(f"{metrics['left_out']} pairs were left out: --max-pairs {max_pairs}")
    if cut := metrics["train"].get("replies_at_limit"):
        console.print(f"{cut} replies were cut at the token limit or just reach it: see --max-tokens")
    _show("Held-out users", metrics["heldout"])
    console.print(f"written: {out}")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of a reward model.")],
    pairs: Pairs,
    as_json: Annotated[bool, typer.Option("--json", help="All metrics as JSON.")] = False,
    root: Root = Path(),
) -> None:
    """Measure a reward model on all pairs of a file."""
    import orjson

    from flywheel_tasks.rewards.standalone import evaluate_model
    from flywheel_tasks.settings import load_settings

    measured = evaluate_model(model, pairs, load_settings(root / "params.yaml", alone=True).compute)
    if as_json:
        typer.echo(orjson.dumps(measured, option=orjson.OPT_INDENT_2).decode())
        return
    _show(f"{measured['kind']} reward model on {pairs.name}", measured)
    if measured["skipped"]:
        console.print(f"{measured['skipped']} lines of the file were skipped")
