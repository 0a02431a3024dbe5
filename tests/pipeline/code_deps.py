"""Which project files a stage's entry imports; ``python -m tests.pipeline.code_deps`` writes them into dvc.yaml."""

from pathlib import Path

import grimp
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
# How stages are run and stored; a change here does not change what a stage computes.
MACHINERY = ("flywheel_tasks.pipeline", "flywheel_tasks.settings", "flywheel_tasks.storage", "flywheel_tasks.cli")


def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("flywheel_tasks", cache_dir=None)


def code_of(imports: grimp.ImportGraph, entry: str) -> list[str]:
    """Files that ``module:function`` reaches, sorted; packages are left out, they hold only their docstring."""
    module = entry.partition(":")[0]
    reached = sorted({module} | imports.find_upstream_modules(module))
    files = (Path(name.replace(".", "/") + ".py") for name in reached if not name.startswith(MACHINERY))
    return [file.as_posix() for file in files if (PROJECT / file).exists()]


def main() -> None:
    yaml = YAML()
    yaml.width = 130
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = PROJECT / "dvc.yaml"
    document = yaml.load(path.read_text(encoding="utf-8"))
    imports = import_graph()
    for stage in document["stages"].values():
        data = [dep for dep in stage.get("deps", []) if not dep.endswith(".py")]
        code = data + code_of(imports, stage["meta"]["run"])
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
