"""``flywheel airflow``: the demo's Airflow on this machine."""

import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Airflow on this machine.")
console = Console(highlight=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]


@app.callback()
def _group() -> None:
    """Airflow on this machine."""


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@app.command()
def start(
    root: Root = Path(),
    port: Annotated[int, typer.Option(help="Of the UI, on 127.0.0.1 only.")] = 8080,
) -> None:
    """Start Airflow on SQLite, with a login, and keep it until Ctrl-C."""
    from flywheel_tasks.cli.airflow_services import USER, Place, Services, prepare, set_gpu_pool
    from flywheel_tasks.settings import load_settings

    root = root.resolve()
    settings = load_settings(root / "params.yaml")
    place = Place(root, root / ".airflow", port)
    services = Services(place)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell starts background jobs deaf to Ctrl-C
        signal.signal(number, _interrupt)
    try:
        with console.status("Preparing Airflow's database"):
            prepare(place)
        services.start()
        with console.status("Waiting for Airflow's services"):
            services.wait_until_healthy()
        set_gpu_pool(place, settings.airflow.gpu_pool_slots)
        console.print(f"Airflow is up: [bold]{place.url}[/]")
        console.print(f"User:       [bold]{USER}[/]")
        console.print(f"Password:   in {place.passwords}, which only you can read", soft_wrap=True)
        console.print(f"Logs:       {services.log('*')}", soft_wrap=True)
        console.print("Stop:       Ctrl-C")
        while True:
            services.check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("Stopping Airflow ...")
    finally:
        services.stop()
