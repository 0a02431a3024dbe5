import shutil
from pathlib import Path

import pytest
import yaml

from flywheel_tasks.contracts.suite import ContractError, load_contracts
from flywheel_tasks.contracts.validate import _type_name
from flywheel_tasks.settings import SIGNALS
from flywheel_tasks.traffic.events import ROLES, SOURCES
from flywheel_tasks.traffic.schemas import TABLES

FOLDER = Path(__file__).parents[2] / "data_contracts"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "data_contracts"))


def change(path: Path, edit) -> None:
    document = yaml.safe_load(path.read_text())
    edit(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def test_contracts_have_the_columns_that_ingestion_writes():
    contracts = load_contracts(FOLDER)
    for table, schema in TABLES.items():
        columns = [(name, column.type) for name, column in contracts[table].columns.items()]
        assert columns == [(item.name, _type_name(item.type)) for item in schema]


def test_contracts_allow_the_values_that_parsing_allows():
    contracts = load_contracts(FOLDER)
    allowed = {
        (table, rule.kwargs["column"]): tuple(rule.kwargs["value_set"])
        for table, contract in contracts.items()
        for rule in contract.row_rules
        if rule.expectation == "expect_column_values_to_be_in_set"
    }
    assert allowed.pop(("messages", "role")) == ROLES
    assert allowed.pop(("signals", "signal")) == SIGNALS
    assert allowed == {(table, "source"): SOURCES for table in TABLES}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["row_rules"].append({"name": "x", "expectation": "expect_luck"}), "expect_luck"),
        (
            lambda d: d["row_rules"].append(
                {"name": "x", "expectation": "expect_column_values_to_be_in_set", "kwargs": {"colum": "name"}}
            ),
            "rule x",
        ),
        (lambda d: d["row_rules"].append({"name": "x"}), "exactly one of"),
        (lambda d: d["row_rules"].append(d["row_rules"][0]), "more than once"),
        (lambda d: d["row_rules"].append({"name": "x", "colour": "blue"}), "colour"),
        (
            lambda d: d["row_rules"].append(
                {"name": "x", "constant": {"column": "nme", "within": "card_id"}}
            ),
            "no column nme in table cards",
        ),
        (
            lambda d: d["row_rules"].append(
                {"name": "x", "references": {"column": "name", "table": "people", "target": "name"}}
            ),
            "no column name in table people",
        ),
        (
            lambda d: d["table_rules"].append(
                {"name": "x", "constant": {"column": "name", "within": "card_id"}}
            ),
            "must be an expectation",
        ),
        (lambda d: d.update(table="persons"), "name the file after it"),
        (lambda d: d.pop("columns"), "columns"),
    ],
)
def test_a_wrong_contract_is_refused_with_its_file(folder, edit, message):
    change(folder / "cards.yaml", edit)
    with pytest.raises(ContractError, match=message) as caught:
        load_contracts(folder)
    assert "cards.yaml" in str(caught.value)


def test_a_contract_that_is_no_yaml_is_refused(folder):
    (folder / "cards.yaml").write_text("table: [")
    with pytest.raises(ContractError, match=r"cards\.yaml: not YAML"):
        load_contracts(folder)
