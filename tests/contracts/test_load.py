import shutil
from pathlib import Path

import pytest
import yaml

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.schema import arrow_schema, arrow_type, type_name
from flywheel_tasks.settings import SIGNALS
from flywheel_tasks.traffic.events import ROLES
from flywheel_tasks.traffic.schemas import SOURCES, TABLES

FOLDER = Path(__file__).parents[2] / "data_contracts"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "data_contracts"))


def table_rule(**measure):
    return {"name": "x", "why": "-", "severity": "warn", "measure": measure, "allowed": {"max_value": 1}}


def change(path: Path, edit) -> None:
    document = yaml.safe_load(path.read_text())
    edit(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def test_contracts_have_the_columns_that_ingestion_writes():
    contracts = load_contracts(FOLDER)
    for table, schema in TABLES.items():
        assert arrow_schema(contracts[table]) == schema


@pytest.mark.parametrize(
    "text", ["string", "list<struct<role: string, turns: list<int64>>>", "timestamp[us, tz=UTC]"]
)
def test_types_are_read_and_written_in_the_same_words(text):
    assert type_name(arrow_type(text)) == text


def test_contracts_allow_the_values_that_parsing_allows():
    contracts = load_contracts(FOLDER)
    allowed = {
        (table, rule.kwargs["column"]): tuple(rule.kwargs["value_set"])
        for table, contract in contracts.items()
        if table in TABLES
        for rule in contract.row_rules
        if rule.expectation == "expect_column_values_to_be_in_set"
    }
    assert allowed.pop(("messages", "role")) == ROLES
    assert allowed.pop(("signals", "signal")) == SIGNALS
    assert allowed == {(table, "source"): SOURCES for table in TABLES}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["row_rules"].append({"name": "x", "why": "-", "expectation": "expect_luck"}),
            "expect_luck is not among",
        ),
        (
            lambda d: d["row_rules"].append(
                {
                    "name": "x",
                    "why": "-",
                    "expectation": "expect_column_values_to_be_in_set",
                    "kwargs": {"colum": "name"},
                }
            ),
            "rule x",
        ),
        (lambda d: d["row_rules"].append({"name": "x", "why": "-"}), "exactly one of"),
        (lambda d: d["row_rules"].append(d["row_rules"][0]), "more than once"),
        (lambda d: d["row_rules"].append({"name": "x", "why": "-", "colour": "blue"}), "colour"),
        (
            lambda d: d["row_rules"].append(
                {"name": "x", "why": "-", "constant": {"column": "nme", "within": "card_id"}}
            ),
            "no column nme in table cards",
        ),
        (
            lambda d: d["row_rules"].append(
                {
                    "name": "x",
                    "why": "-",
                    "references": {"column": "name", "table": "people", "target": "name"},
                }
            ),
            "no column name in table people",
        ),
        (
            lambda d: d["table_rules"].append(
                {"name": "x", "why": "-", "constant": {"column": "name", "within": "card_id"}}
            ),
            "constant: Extra inputs",
        ),
        (lambda d: d["table_rules"].append(table_rule(kind="luck")), "luck"),
        (lambda d: d["table_rules"].append(table_rule(kind="distinct", column="nme")), "no column nme"),
        (
            lambda d: d["table_rules"].append(table_rule(kind="quarantined_share", rules=["nothing"])),
            "no row rule nothing",
        ),
        (
            lambda d: d["table_rules"].append(
                table_rule(kind="drift", of="lengths", column="name", distance="jensen_shannon")
            ),
            "distance jensen_shannon is for categories",
        ),
        (
            lambda d: d["row_rules"].append(
                {
                    "name": "r",
                    "why": "-",
                    "rooted": {
                        "parent": "name",
                        "target": "name",
                        "root_where": {},
                        "only": "roots",
                        "within": "talk",
                    },
                }
            ),
            "no column talk",
        ),
        (
            lambda d: (d["table_rules"].append(table_rule(kind="age_days")), d.pop("time")),
            "needs the contract's time",
        ),
        (lambda d: d["columns"]["name"].update(type="text"), "columns.name: unknown type 'text'"),
        (lambda d: d.update(key="id"), "key or time is no column: id"),
        (
            lambda d: d["row_rules"].append(
                {
                    "name": "x",
                    "why": "-",
                    "references": {"column": "name", "table": "cards", "target": "card_id", "same": ["name"]},
                }
            ),
            "needs a row rule expect_column_values_to_be_unique",
        ),
        (
            lambda d: d["row_rules"].append(
                {
                    "name": "x",
                    "why": "-",
                    "expectation": "expect_column_values_to_match_regex",
                    "kwargs": {"column": "name", "regex": r"\bno\b"},
                }
            ),
            "is not supported",
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
