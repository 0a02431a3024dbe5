"""dvc.yaml as a graph."""

from pathlib import Path

import pytest

from flywheel_tasks.pipeline.graph import GraphError, ancestors, load_graph

PROJECT = Path(__file__).resolve().parents[2]


def _load(tmp_path: Path, text: str):
    (tmp_path / "dvc.yaml").write_text(text)
    return load_graph(tmp_path / "dvc.yaml")


def test_the_projects_graph_is_whole():
    graph = load_graph(PROJECT / "dvc.yaml")
    assert set(ancestors(graph, "launch")) == set(graph) - {"launch"}
    order = list(graph)
    assert all(order.index(parent) < order.index(name) for name in graph for parent in graph[name].upstream)


def test_reward_training_reaches_the_policy_but_the_judge_only_watches_and_measures():
    graph = load_graph(PROJECT / "dvc.yaml")
    for stage in ("rejection_sample", "sft", "dpo"):
        assert "train_pairwise_rm" not in ancestors(graph, stage)
    # RL watches it, to stop when it falls; its rewards are the pointwise model's, bounded terms and penalties.
    assert {name for name, stage in graph.items() if "models/pairwise_rm" in stage.deps} == {"rl", "evaluate"}
    for name in ("reward_parts", "grpo", "online_dpo", "rl_trainer"):
        code = (PROJECT / f"flywheel_tasks/policy/{name}.py").read_text(encoding="utf-8")
        assert "pairwise" not in code.lower(), name
    readers = {
        name
        for name, stage in graph.items()
        if {"data/split", "data/split/evaluation.parquet"} & {*stage.deps}
    }
    assert readers == {"evaluate"}
    assert "train_pointwise_rm" in ancestors(graph, "rl")


def test_an_edge_goes_to_the_folder_that_holds_a_file(tmp_path):
    graph = _load(
        tmp_path,
        """
        stages:
          b: {cmd: x, deps: [data/t/part.parquet], outs: [c], meta: {run: "m:f"}}
          a: {cmd: x, outs: [data/t], meta: {run: "m:f"}}
          unrelated: {cmd: x, outs: [data/t2], meta: {run: "m:f"}}
        """,
    )
    assert graph["b"].upstream == ("a",)
    assert list(graph) == ["a", "b", "unrelated"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stages: {a: {cmd: x, outs: [o]}}", "meta.run"),
        (
            "stages: {a: {cmd: x, outs: [o], meta: {run: 'm:f'}}, b: {cmd: x, outs: [o], meta: {run: 'm:f'}}}",
            "o is written by both a and b",
        ),
        (
            "stages: {a: {cmd: x, deps: [p], outs: [o], meta: {run: 'm:f'}},"
            " b: {cmd: x, deps: [o], outs: [p], meta: {run: 'm:f'}}}",
            "cycle among a, b",
        ),
        ("stages: {a: {cmd: '${x}', meta: {run: 'm:f'}}}", "templated"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, complaint):
    with pytest.raises(GraphError, match=complaint):
        _load(tmp_path, text)
