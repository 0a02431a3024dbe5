"""Runs Great Expectations suites on tables in memory, without project folder, network or progress bar."""

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

from flywheel_tasks.contracts.suite import ContractError, Rule, build_suite

# The indexes of all broken rows are needed; a query that selects them is not.
_RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation.

    Attributes:
        rule: the rule.
        success: whether the table keeps it.
        observed: the observed value, or the number of values that break it.
        broken: broken rows, ``{row index: value}``, for expectations on rows.
    """

    rule: Rule
    success: bool
    observed: Any
    broken: dict[int, Any]

    def summary(self) -> dict[str, Any]:
        """The outcome as a JSON object, without the rows."""
        return {
            "rule": self.rule.name,
            "expectation": self.rule.expectation,
            "success": self.success,
            "observed": self.observed if isinstance(self.observed, int | float) else str(self.observed),
        }


class Engine:
    """An in-memory Great Expectations context."""

    def __init__(self) -> None:
        config = DataContextConfig(  # the default would leave a folder for a documentation site behind
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        context = gx.get_context(project_config=config, mode="ephemeral")
        self._source = context.data_sources.add_pandas("tables")
        self._batches = 0

    def check(self, table: str, frame: pd.DataFrame, rules: list[Rule], path: Path) -> list[Outcome]:
        """Check a table.

        Args:
            table: its name.
            frame: its rows; the outcome names broken ones by this index.
            rules: expectations.
            path: the contract's file, for messages.

        Returns:
            one outcome a rule, in the order of the rules.

        Raises:
            ContractError: an expectation could not be computed on this table.
        """
        self._batches += 1
        asset = self._source.add_dataframe_asset(f"{table}-{self._batches}")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
            {"dataframe": frame.reset_index(drop=True)}
        )
        suite = build_suite(f"{table}-{self._batches}", rules, path)
        results = batch.validate(suite, result_format=_RESULT_FORMAT).results
        by_rule: dict[str, Any] = {}
        for result in results:
            if result.expectation_config is not None and result.expectation_config.meta is not None:
                by_rule[result.expectation_config.meta["rule"]] = result
        if missing := [rule.name for rule in rules if rule.name not in by_rule]:
            raise ContractError(f"{path}: rules not evaluated (the same as another?): {', '.join(missing)}")
        return [self._outcome(rule, by_rule[rule.name], frame.index, path) for rule in rules]

    def _outcome(self, rule: Rule, result: Any, index: pd.Index, path: Path) -> Outcome:
        details = result.result
        if not details:  # the metrics raised; exception_info is keyed by their ids
            reasons = sorted(
                {
                    str(info["exception_message"])
                    for info in result.exception_info.values()
                    if isinstance(info, dict)
                }
            )
            raise ContractError(f"{path}: rule {rule.name} cannot be computed: {'; '.join(reasons)}")
        rows = details.get("unexpected_index_list") or []
        values = details.get("unexpected_list") or [None] * len(rows)
        broken = {int(index[row]): value for row, value in zip(rows, values, strict=True)}
        observed = next(  # some expectations on tables have an observed value of None, and say more elsewhere
            (details[key] for key in ("observed_value", "unexpected_count") if details.get(key) is not None),
            {key: value for key, value in details.items() if value is not None},
        )
        return Outcome(rule, bool(result.success), observed, broken)
