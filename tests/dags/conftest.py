"""What tests of single tasks share: Airflow without a server, and a workspace as it is after the gate."""

import pytest

from tests.conftest import PROJECT
from tests.online.conftest import root

__all__ = ["airflow_home", "failure", "root"]


@pytest.fixture
def airflow_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for Airflow, and the project's DAGs on the path."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.syspath_prepend(str(PROJECT / "dags"))


@pytest.fixture
def failure() -> type[Exception]:
    """What Airflow does not try again."""
    from airflow.sdk.exceptions import AirflowFailException

    return AirflowFailException
