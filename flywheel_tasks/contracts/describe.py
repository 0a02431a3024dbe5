"""The contracts for people: a Markdown page of every table, column and rule, made from ``data_contracts/``."""

from collections.abc import Mapping

from flywheel_tasks.contracts import words
from flywheel_tasks.contracts.measures import describe
from flywheel_tasks.contracts.model import Contract, Rule

_HEADER = """# Tables and their contracts

Made from `data_contracts/` by `flywheel contracts describe > docs/contracts.md`; a test compares the two. How rules are
written, checked and judged: [data-contracts.md](data-contracts.md).

"""


def describe_contracts(contracts: Mapping[str, Contract]) -> str:
    """A Markdown page of all contracts.

    Args:
        contracts: by table.
    """
    index = "\n".join(f"- [{table}](#{table}): {of.description}" for table, of in contracts.items())
    return _HEADER + index + "\n" + "".join(_table(of) for of in contracts.values())


def _table(contract: Contract) -> str:
    where = ", ".join(f"`{path}`" for path in contract.paths)
    parts = [f"\n## {contract.table}\n\n{contract.description}\n\nAt {where}."]
    rows = [
        f"| `{name}` | `{of.type}`{' or null' if of.nullable else ''} | {_cell(of.description)}"
        f"{f' ({of.unit})' if of.unit else ''} |"
        for name, of in contract.columns.items()
    ]
    parts.append("\n".join(["| column | type | meaning |", "|---|---|---|", *rows]))
    required = [name for name, of in contract.columns.items() if not of.nullable]
    if required:
        parts.append(
            "A row without a value in a column that may not be null breaks the rule `null_<column>`. "
            "Rows that break a rule go to quarantine under the first they break:"
        )
    if contract.row_rules:
        lines = [f"| `{r.name}` | {_cell(_wording(r))} | {_cell(r.why)} |" for r in contract.row_rules]
        parts.append("\n".join(["| row rule | a row must | why |", "|---|---|---|", *lines]))
    if contract.table_rules:
        lines = [
            f"| `{r.name}` | {_cell(describe(r.measure))} | {r.allowed}"
            f"{f'; from {r.min_rows:,} rows on' if r.min_rows else ''} | {r.severity} | {_cell(r.why)} |"
            for r in contract.table_rules
        ]
        parts.append(
            "\n".join(["| table rule | measured | allowed | else | why |", "|---|---|---|---|---|", *lines])
        )
    return "\n\n".join(parts) + "\n"


def _wording(rule: Rule) -> str:
    """What a row must be, in words."""
    if (of := rule.references) is not None:
        text = f"have its {of.column} among {of.table}.{of.target}{f' (of `{of.at}`)' if of.at else ''}"
        if of.when:
            text += f", if it has {', '.join(f'{column} {value}' for column, value in of.when.items())}"
        also = [f"that row has {column} {value}" for column, value in of.where.items()]
        also += [f"both have the same {column}" for column in of.same]
        also += [f"its {column} is that row's {its}" for column, its in of.equal.items()]
        also += [f"they differ in {column}" for column in of.differs]
        also += [f"its {of.not_before} is not before that row's"] if of.not_before else []
        return "; ".join([text, *also])
    if (constant := rule.constant) is not None:
        return f"have the {constant.column} of all rows with its {' and '.join(constant.within)}"
    if (rooted := rule.rooted) is not None:
        root = ", ".join(f"{column} {value}" for column, value in rooted.root_where.items())
        if rooted.only == "roots":
            rows = f", as must all rows with its {rooted.within}" if rooted.within else ""
            free = f"; one that alone has none there may have any {', '.join(rooted.root_where)}"
            return f"have {root} if it has no {rooted.parent}{rows}{free if rooted.sole_is_free else ''}"
        return f"lead through {rooted.parent} to a row without one"
    if (greatest := rule.greatest) is not None:
        values = ", ".join(f"{column} {value}" for column, value in greatest.where.items())
        return (
            f"have the greatest {greatest.column} of all rows with its {greatest.within}, if it has {values}"
        )
    kwargs = {key: value for key, value in rule.kwargs.items() if key != "row_condition"}
    shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    condition = rule.kwargs.get("row_condition")
    return f"`{rule.expectation}` ({shown})" + (f" where {words.condition(condition)}" if condition else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
