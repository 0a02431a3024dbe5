"""``flywheel serve``: the gateway, and its API keys."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Serve characters behind an OpenAI-compatible API; record what users do.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of the gateway; only their hashes are kept.")
app.add_typer(keys_app, name="keys")
console = Console(highlight=False, markup=False, emoji=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    root: Root = Path(),
    host: Annotated[str | None, typer.Option(help="Instead of serve.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of serve.port.")] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of serve.workers.")] = None,
) -> None:
    """Start the gateway."""
    if context.invoked_subcommand is None:
        from flywheel_tasks.serving.server import run

        run(root.resolve(), host=host, port=port, workers=workers)


def _keys(root: Path) -> Path:
    from flywheel_tasks.serving.keys import keys_path
    from flywheel_tasks.settings import load_settings

    return keys_path(root.resolve() / load_settings(root / "params.yaml").serve.state)


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who holds it.")],
    role: Annotated[
        Literal["user", "staff"], typer.Option(help="staff: logged as internal, may choose an arm.")
    ] = "user",
    user: Annotated[str | None, typer.Option(help="The user's id in the logs; by default the name.")] = None,
    many: Annotated[
        bool, typer.Option("--many-users", help="A back end's key: each request names its user.")
    ] = False,
    root: Root = Path(),
) -> None:
    """Make a key. It is shown once and kept nowhere."""
    from flywheel_tasks.serving.keys import KeysError, add_key

    if many and user is not None:
        raise KeysError("--user and --many-users exclude each other")
    record, key = add_key(_keys(root), name, role, None if many else user or name)
    console.print(f"Key {record.id} for {record.name} ({record.role}); it is not shown again:")
    typer.echo(key)


@keys_app.command("list")
def list_keys(root: Root = Path()) -> None:
    """Show all keys, without their secrets."""
    from flywheel_tasks.serving.keys import read_keys

    table = Table()
    for heading in ("id", "name", "role", "user", "created (UTC)", "revoked (UTC)"):
        table.add_column(heading, overflow="fold")
    for key in read_keys(_keys(root)):
        revoked = f"{key.revoked:%Y-%m-%d %H:%M}" if key.revoked else ""
        user = key.user_id if key.user_id is not None else "named in each request"
        table.add_row(key.id, key.name, key.role, user, f"{key.created:%Y-%m-%d %H:%M}", revoked)
    console.print(table)


@keys_app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], root: Root = Path()) -> None:
    """End a key, at once for new requests (within serve.poll_seconds)."""
    from flywheel_tasks.serving.keys import revoke_key

    record = revoke_key(_keys(root), key_id)
    console.print(f"Key {record.id} of {record.name} is revoked.")
