"""params.yaml is checked as a whole, and a message names the key."""

from pathlib import Path

import pytest
import yaml

from flywheel_tasks.settings import SettingsError, load_settings

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def _changed(tmp_path: Path, change) -> Path:
    raw = yaml.safe_load(PARAMS.read_text())
    change(raw)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_projects_settings_are_valid():
    assert load_settings(PARAMS).evaluate.prompts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw["rl"].update(step=3), r"rl\.step: Extra inputs"),
        (lambda raw: raw["rl"].pop("steps"), r"rl\.steps: Field required"),
        (lambda raw: raw["rl"].update(steps=0), r"rl\.steps: .*greater than 0"),
        (lambda raw: raw["split"]["shares"].update(evaluation=0.5), "add up to 1"),
        (lambda raw: raw["split"]["shares"].pop("evaluation"), "must name exactly"),
        (lambda raw: raw["signal_models"].update(used=["applause"]), "not trained: applause"),
        (lambda raw: raw["launch"].update(traffic_share=0.6), "less than or equal to 0.5"),
        (lambda raw: raw.update(seed=-1), "seed"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, complaint):
    with pytest.raises(SettingsError, match=complaint):
        load_settings(_changed(tmp_path, change))


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: [1")
    with pytest.raises(SettingsError, match=r"params\.yaml: not YAML"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(SettingsError, match=r"absent\.yaml: no such file"):
        load_settings(tmp_path / "absent.yaml")
