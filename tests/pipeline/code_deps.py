"""Which project files a stage needs: the code its entry imports, and the contracts its tables must keep.

``python -m tests.pipeline.code_deps`` writes them into dvc.yaml.
"""

from pathlib import Path

import grimp
from ruamel.yaml import YAML

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.pipeline.graph import Stage, load_graph

PROJECT = Path(__file__).resolve().parents[2]
# How stages are run and stored; a change here does not change what a stage computes.
MACHINERY = (
    "flywheel_tasks.pipeline",
    "flywheel_tasks.settings",
    "flywheel_tasks.storage",
    "flywheel_tasks.cli",
)
# The runner applies it to what may leave: stricter rules must be applied to data that are there already.
SCAN = "flywheel_tasks/privacy/outgoing.py"
# The demo's annotators run as a process of their own; labels of other annotators are other labels.
SPAWNED = {"label": "flywheel_tasks.simulation.annotators:label_batch"}
TEMPLATES = (".html", ".md", ".css", ".j2", ".yaml", ".txt", ".jsonl", ".safetensors")


def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("flywheel_tasks", cache_dir=None)


def _holds_data(item: Path) -> bool:
    """Is it a folder of templates or word lists, and no package or cache of one?"""
    if not item.is_dir() or (item / "__init__.py").exists():
        return False
    return any(file.suffix in TEMPLATES for file in item.iterdir())


def named_beside(module: Path) -> list[Path]:
    """Templates, word lists and folders of them beside a module that it names: a neighbour's are not its own."""
    text = module.read_text(encoding="utf-8")
    data = [item for item in module.parent.iterdir() if item.suffix in TEMPLATES or _holds_data(item)]
    return [item for item in data if f'"{item.name}"' in text]


def code_of(imports: grimp.ImportGraph, entry: str) -> list[str]:
    """Files that ``module:function`` reaches, sorted: modules, and the templates beside them that they name.

    Packages are left out, they hold only their docstring.
    """
    module = entry.partition(":")[0]
    reached = sorted({module} | imports.find_upstream_modules(module))
    names = [Path(name.replace(".", "/") + ".py") for name in reached if not name.startswith(MACHINERY)]
    modules = [name for name in names if (PROJECT / name).exists()]
    beside = {item for name in modules for item in named_beside(PROJECT / name)}
    return sorted(
        [name.as_posix() for name in modules] + [item.relative_to(PROJECT).as_posix() for item in beside]
    )


def code_of_stage(imports: grimp.ImportGraph, stage: Stage) -> list[str]:
    """The code of a stage's entry, of what it runs beside itself, and of the scan that its outputs pass."""
    spawned = code_of(imports, SPAWNED[stage.name]) if stage.name in SPAWNED else []
    return sorted({*code_of(imports, stage.entry), *spawned, *([SCAN] if stage.outgoing else [])})


def contracts_of_stage(stage: Stage) -> list[str]:
    """The contracts that a stage's tables are held to when it ends: stricter rules are for data that are there, too."""
    found = []
    for table, contract in load_contracts(PROJECT / "data_contracts").items():
        places = [path.split("*")[0].rstrip("/") for path in contract.paths]
        if any(place == out or place.startswith(out + "/") for place in places for out in stage.checked):
            found.append(f"data_contracts/{table}.yaml")
    return sorted(found)


def main() -> None:
    yaml = YAML()
    yaml.width = 130
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = PROJECT / "dvc.yaml"
    document = yaml.load(path.read_text(encoding="utf-8"))
    imports = import_graph()
    graph = load_graph(path)
    for name, stage in document["stages"].items():
        data = [
            dep for dep in stage.get("deps", []) if not dep.startswith(("flywheel_tasks/", "data_contracts/"))
        ]
        code = data + contracts_of_stage(graph[name]) + code_of_stage(imports, graph[name])
        if "deps" in stage:
            stage["deps"].clear()
            stage["deps"].extend(code)
            stage["deps"].fa.set_block_style()
        else:
            keys = list(stage)
            stage.insert(keys.index("cmd") + 1, "deps", code)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)


if __name__ == "__main__":
    main()
