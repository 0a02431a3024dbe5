"""params.yaml is checked as a whole, and a message names the key."""

import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml

from flywheel_tasks import settings
from flywheel_tasks.settings import SettingsError, load_settings

PROJECT = Path(__file__).resolve().parents[1]
PARAMS = PROJECT / "params.yaml"


def _changed(tmp_path: Path, change) -> Path:
    raw = yaml.safe_load(PARAMS.read_text())
    change(raw)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_projects_settings_are_valid():
    assert load_settings(PARAMS).evaluate.prompts


def test_guardrails_that_params_do_not_name_are_those_of_the_shipped_ones(tmp_path):
    found = load_settings(_changed(tmp_path, lambda raw: raw["ab"].pop("guardrails"))).ab
    assert found.guardrails == load_settings(PARAMS).ab.guardrails


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw["rl"].update(step=3), r"rl\.step: Extra inputs"),
        (lambda raw: raw["rl"].pop("steps"), r"rl\.steps: Field required"),
        (lambda raw: raw["rl"].update(steps=0), r"rl\.steps: .*greater than 0"),
        (
            lambda raw: raw["rl"].update(auxiliary={"p_continue": {"weight": 1.5, "bound": 1.0}}),
            r"rl: .*auxiliary\.p_continue: the weight of a user signal is 1 at most",
        ),
        (lambda raw: raw["split"]["shares"].update(evaluation=0.5), "add up to 1"),
        (lambda raw: raw["split"]["shares"].pop("evaluation"), "must name exactly"),
        (lambda raw: raw["signal_models"].update(signals=["continue"]), "not trained: thumb_up"),
        (lambda raw: raw["signal_models"].update(used=["love"]), r"signal_models\.used\.0: .*'thumb_up'"),
        (
            lambda raw: (
                raw["signal_models"].update(used=["continue"]),
                raw["rejection_sample"].update(min_thumb_up=0.1),
            ),
            r"rejection_sample\.min_thumb_up is above 0, but signal_models\.used lacks thumb_up",
        ),
        (lambda raw: raw["launch"].update(traffic_share=0.6), "less than or equal to 0.5"),
        (
            lambda raw: raw["label"].update(location="."),
            r"label\.location: .*'\.' names no folder of its own",
        ),
        (lambda raw: raw["label"].update(location="{generation}"), r"label\.location: .* in the first part"),
        (lambda raw: raw.update(seed=-1), "seed"),
        # No look could read such a test, so its guardrails would never stop it.
        (lambda raw: raw["ab"].update(duration_minutes=60 * 1440 + 1), "ab: .*more than 60 days"),
        # What fits when the policy answers must fit where that is learned and judged.
        (
            lambda raw: raw["prompt"].update(max_tokens=185),
            r"sft\.max_tokens: 224 is less than prompt\.max_tokens \(185\) \+ sampling\.max_new_tokens \(40\)",
        ),
        (lambda raw: raw["dpo"].update(max_tokens=199), r"params\.yaml: dpo\.max_tokens: 199 is less than"),
        (
            lambda raw: raw["pointwise_rm"].update(max_tokens=200),
            r"pointwise_rm\.max_tokens: 200 is less than .* \+ 1",
        ),
        (
            lambda raw: (
                raw["pointwise_rm"].update(max_tokens=212),
                raw["sampling"].update(max_new_tokens=36),
            ),
            r"pointwise_rm\.max_tokens: 212 leaves a prompt 159, less than prompt\.max_tokens \(160\)",
        ),
        (
            lambda raw: raw["sampling"].update(max_new_tokens=35),
            r"rl\.length_limit: 36 is more than sampling\.max_new_tokens \(35\): .* would never count",
        ),
        (
            lambda raw: raw["ab"].update(segments=["country"]),
            "ab: .*segments: raw logs have no further columns",
        ),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, complaint):
    with pytest.raises(SettingsError, match=complaint):
        load_settings(_changed(tmp_path, change))


def test_limits_that_just_fit_are_taken_and_a_reward_model_on_its_own_needs_fit_none(tmp_path):
    def change(raw):
        raw["prompt"]["max_tokens"] = 159
        raw["sampling"]["max_new_tokens"] = raw["rl"]["length_limit"] = 40
        raw["sft"]["max_tokens"] = raw["dpo"]["max_tokens"] = 199
        raw["pointwise_rm"]["max_tokens"] = 212

    assert load_settings(_changed(tmp_path, change)).sft.max_tokens == 199
    short = _changed(tmp_path, lambda raw: raw["pointwise_rm"].update(max_tokens=64))
    assert load_settings(short, alone=True).pointwise_rm.max_tokens == 64


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: [1")
    with pytest.raises(SettingsError, match=r"params\.yaml: not YAML"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(SettingsError, match=r"absent\.yaml: no such file; .* --root"):
        load_settings(tmp_path / "absent.yaml")


def test_every_section_has_one_home_and_is_imported_from_the_package():
    modules = [
        importlib.import_module(f"{settings.__name__}.{m.name}")
        for m in pkgutil.iter_modules(settings.__path__)
    ]
    defined = {
        name: found
        for module in modules
        for name, found in vars(module).items()
        if isinstance(found, type) and found.__module__ == module.__name__
    }
    assert {"Rl", "Settings", "Campaign", "SettingsError"} <= set(defined)
    assert all(getattr(settings, name) is found for name, found in defined.items())


def test_a_changed_settings_class_runs_no_stage_again():
    """A stage depends on the values of the sections that it names, not on the code of any section."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    sections = set(settings.Settings.model_fields) | {"validate"}
    for name, stage in stages.items():
        assert not [dep for dep in stage.get("deps", []) if dep.startswith("flywheel_tasks/settings")], name
        assert set(stage.get("params", [])) <= sections, name
