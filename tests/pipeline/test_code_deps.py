"""Every stage declares the code it runs, so that a changed line runs again what depends on it, and nothing else."""

from pathlib import Path

import pytest

from flywheel_tasks.pipeline.describe import stages_table
from flywheel_tasks.pipeline.graph import load_graph
from tests.pipeline.code_deps import TEMPLATES, code_of_stage, contracts_of_stage, import_graph, named_beside

PROJECT = Path(__file__).resolve().parents[2]
GRAPH = load_graph(PROJECT / "dvc.yaml")


@pytest.fixture(scope="module")
def imports():
    return import_graph()


@pytest.mark.parametrize("name", list(GRAPH))
def test_code_among_the_deps_is_the_code_that_is_imported(imports, name):
    declared = sorted(dep for dep in GRAPH[name].deps if dep.startswith("flywheel_tasks/"))
    assert declared == code_of_stage(imports, GRAPH[name]), "run: python -m tests.pipeline.code_deps"


@pytest.mark.parametrize("name", list(GRAPH))
def test_contracts_among_the_deps_are_those_of_the_tables_it_writes(name):
    declared = sorted(dep for dep in GRAPH[name].deps if dep.startswith("data_contracts/"))
    assert declared == contracts_of_stage(GRAPH[name]), "run: python -m tests.pipeline.code_deps"


def test_the_page_of_stages_is_that_of_dvc_yaml():
    shown = (PROJECT / "docs/stages.md").read_text(encoding="utf-8")
    assert shown == stages_table(GRAPH), "run: flywheel stages > docs/stages.md"


def test_every_template_is_named_by_a_module_beside_it():
    """Else no stage would run again when it changes."""
    package = PROJECT / "flywheel_tasks"
    named = {item for module in package.rglob("*.py") for item in named_beside(module)}
    files = {file for item in named for file in (item.rglob("*") if item.is_dir() else [item])}
    assert files == {item for item in package.rglob("*") if item.suffix in TEMPLATES}


def test_labels_depend_on_the_demos_annotators_and_on_what_they_write():
    assert {"flywheel_tasks/simulation/answers", "flywheel_tasks/simulation/annotators.py"} <= set(
        GRAPH["label"].deps
    )
