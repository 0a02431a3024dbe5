from pathlib import Path

from flywheel_tasks.contracts.describe import describe_contracts
from flywheel_tasks.contracts.load import load_contracts

PROJECT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_contracts():
    """``flywheel contracts describe > docs/contracts.md``."""
    page = (PROJECT / "docs/contracts.md").read_text(encoding="utf-8")
    assert page == describe_contracts(load_contracts(PROJECT / "data_contracts"))


def test_every_rule_and_column_has_a_reason_and_a_meaning():
    page = (PROJECT / "docs/contracts.md").read_text(encoding="utf-8")
    for table, contract in load_contracts(PROJECT / "data_contracts").items():
        assert f"\n## {table}\n" in page
        for rule in (*contract.row_rules, *contract.table_rules):
            assert len(rule.why.split()) > 3, (table, rule.name)
            assert f"| `{rule.name}` |" in page
        for name, column in contract.columns.items():
            assert column.description, (table, name)
            assert f"| `{name}` |" in page
