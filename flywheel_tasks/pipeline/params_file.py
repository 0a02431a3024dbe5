"""Writes single numbers into params.yaml; every other character of it, a person's, stays. Checks whole texts."""

from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from flywheel_tasks.settings import SettingsError, load_settings
from flywheel_tasks.storage.atomic import atomic_path

FILE = "params.yaml"


def write_setting(root: Path, name: str, value: int) -> None:
    """Set a number in params.yaml; a key that its section lacks is added to it.

    Args:
        root: the workspace.
        name: of the setting, dotted: ``ab.planned_users``.
        value: the number.

    Raises:
        SettingsError: the section is not there, or the setting is no plain value.
    """
    path = root / FILE
    before = path.read_bytes().decode("utf-8")
    after = _with(before, name.split("."), value, f"{path}: {name}")
    if after != before:
        with atomic_path(path, synced=True) as temporary:
            temporary.write_bytes(after.encode("utf-8"))


def check_params(root: Path, text: str) -> None:
    """Make sure that this release can read a text as params.yaml.

    Args:
        root: the workspace, in which the text is laid for a moment.
        text: of the file.

    Raises:
        SettingsError: it cannot.
    """
    with TemporaryDirectory(dir=root, prefix=".params-") as folder:
        path = Path(folder) / FILE
        path.write_text(text, encoding="utf-8")
        try:
            load_settings(path)
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(path), FILE)) from error


def _with(text: str, keys: list[str], value: int, what: str) -> str:
    """The text with a value put in the place of another; YAML's own marks say where that stands."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for number, key in enumerate(keys, start=1):
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise SettingsError(f"{what}: its section is not there")
        found = next((item for name, item in node.value if name.value == key), None)
        if found is None and number == len(keys) and not node.flow_style:
            first = node.value[0][0].start_mark
            return f"{text[: first.index]}{key}: {value}\n{' ' * first.column}{text[first.index :]}"
        node = found
    if not isinstance(node, yaml.ScalarNode) or node.start_mark.index == node.end_mark.index:
        raise SettingsError(f"{what}: expected one plain value to put {value} in the place of")
    return f"{text[: node.start_mark.index]}{value}{text[node.end_mark.index :]}"
