"""Great Expectations: checks the contracts' expectations, and judges what the table engine measured.

Its validations copy the frame they look at, so it gets one row of numbers a table, not the table. Importing it takes
seconds: only what validates imports this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.exceptions import ExpectationNotFoundError
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

from flywheel_tasks.contracts.model import Contract, ContractError, Rule

# The indexes of all broken rows are needed; a query that selects them is not.
_RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}


@dataclass(frozen=True)
class Expected:
    """What came of one expectation.

    Attributes:
        success: whether the frame keeps it.
        broken: positions of the rows that break it.
    """

    success: bool
    broken: list[int]


def build_suite(name: str, rules: Sequence[Rule], path: Path) -> gx.ExpectationSuite:
    """Build a suite; each expectation keeps its rule's name in its ``meta``.

    Args:
        name: of the suite.
        rules: expectations only.
        path: the contract's file, for messages.

    Raises:
        ContractError: Great Expectations does not know an expectation or does not take its arguments.
    """
    expectations = []
    for rule in rules:
        try:
            configuration = ExpectationConfiguration(
                type=str(rule.expectation), kwargs=dict(rule.kwargs), meta={"rule": rule.name}
            )
            expectations.append(configuration.to_domain_obj())
        except (ExpectationNotFoundError, ValueError, TypeError) as error:
            raise ContractError(f"{path}: rule {rule.name}: {rule.expectation}: {error}") from error
    return gx.ExpectationSuite(name=name, expectations=expectations)


def check_expectations(contracts: Mapping[str, Contract], folder: Path) -> None:
    """Check that Great Expectations takes every expectation of the contracts.

    Raises:
        ContractError: it does not; the message names file and rule.
    """
    for table, contract in contracts.items():
        build_suite(table, contract.expectations(), folder / f"{table}.yaml")


class Judge:
    """An in-memory Great Expectations context, without project folder, network or progress bar."""

    def __init__(self) -> None:
        config = DataContextConfig(  # the default would leave a folder for a documentation site behind
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        context = gx.get_context(project_config=config, mode="ephemeral")
        self._source = context.data_sources.add_pandas("tables")
        self._batches = 0

    def check(self, table: str, frame: pd.DataFrame, rules: Sequence[Rule], path: Path) -> list[Expected]:
        """Check a frame against expectations.

        Args:
            table: its name.
            frame: its rows.
            rules: expectations.
            path: the contract's file, for messages.

        Returns:
            one outcome a rule, in the order of the rules.

        Raises:
            ContractError: an expectation could not be computed on this frame.
        """
        self._batches += 1
        asset = self._source.add_dataframe_asset(f"{table}-{self._batches}")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        suite = build_suite(f"{table}-{self._batches}", rules, path)
        by_rule: dict[str, Any] = {}
        for result in batch.validate(suite, result_format=_RESULT_FORMAT).results:
            if result.expectation_config is not None and result.expectation_config.meta is not None:
                by_rule[result.expectation_config.meta["rule"]] = result
        if missing := [rule.name for rule in rules if rule.name not in by_rule]:
            raise ContractError(f"{path}: rules not evaluated (the same as another?): {', '.join(missing)}")
        return [self._expected(rule, by_rule[rule.name], path) for rule in rules]

    def _expected(self, rule: Rule, result: Any, path: Path) -> Expected:
        details = result.result
        if not details:  # the metrics raised; exception_info is keyed by their ids
            infos = [info for info in result.exception_info.values() if isinstance(info, dict)]
            reasons = sorted({str(info["exception_message"]) for info in infos})
            raise ContractError(f"{path}: rule {rule.name} cannot be computed: {'; '.join(reasons)}")
        return Expected(
            bool(result.success), [int(row) for row in details.get("unexpected_index_list") or []]
        )

    def within(
        self, table: str, numbers: Mapping[str, tuple[float, dict[str, float]]], path: Path
    ) -> dict[str, bool]:
        """Judge measured numbers.

        Args:
            table: the table they are of.
            numbers: by rule, the number and its bounds (``min_value``, ``max_value``).
            path: the contract's file, for messages.

        Returns:
            whether each rule holds.
        """
        if not numbers:
            return {}
        frame = pd.DataFrame({rule: [float(number)] for rule, (number, _) in numbers.items()})
        rules = [
            Rule(
                name=rule,
                why="A table rule.",
                expectation="expect_column_values_to_be_between",
                kwargs={"column": rule, **bounds},
            )
            for rule, (_, bounds) in numbers.items()
        ]
        outcomes = self.check(table, frame, rules, path)
        return {rule.name: outcome.success for rule, outcome in zip(rules, outcomes, strict=True)}
