"""``flywheel users``: the key that user ids are hashed with."""

import typer

app = typer.Typer(no_args_is_help=True, help="User ids: the key of their hashes.")


@app.callback()
def _users() -> None:
    """User ids: the key of their hashes."""


@app.command("new-key")
def new_key() -> None:
    """Print a new random key; keep it in your secret store, and set FLYWHEEL_USER_KEY to it."""
    import secrets

    typer.echo(secrets.token_hex(32))


@app.command("hash")
def hash_(user: str) -> None:
    """Print the hash of a raw user id under the key of the environment."""
    from flywheel_tasks.traffic.identity import user_key

    typer.echo(user_key("files").hashed(user))
