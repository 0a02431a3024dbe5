from pathlib import Path

import pytest
import torch

from flywheel_tasks.settings import Compute
from flywheel_tasks.training import precision
from flywheel_tasks.training.precision import cpu_has_bfloat16, repeatable, resolve_dtype


def test_named_precision_is_taken_as_it_is() -> None:
    assert resolve_dtype(Compute(precision="float32", threads=1)) == torch.float32
    assert resolve_dtype(Compute(precision="bfloat16", threads=1)) == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("flags\t\t: fpu avx512f avx512_bf16x", False),
        ("model name\t: avx512_bf16 in a name\nflags\t: fpu", False),
        ("Features\t: fp asimd i8mm bf16 dgh", True),
        ("Features\t: fp asimd i8mm dgh", False),
    ],
)
def test_bfloat16_is_read_from_the_cpu_flags(flags: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t: none\n")
    assert cpu_has_bfloat16(tmp_path / "cpuinfo") is has


def test_no_cpuinfo_means_no_bfloat16(tmp_path: Path) -> None:
    assert cpu_has_bfloat16(tmp_path / "none") is False


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_cpu_where_there_is_no_gpu(
    has: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has)
    assert resolve_dtype(Compute(precision="auto", threads=1)) == expected


def test_repeatable_kernels_are_asked_for_on_a_gpu_alone_and_only_within() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable():
        assert torch.are_deterministic_algorithms_enabled() is torch.cuda.is_available()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU adds up in another order each time")
def test_a_gpu_adds_up_in_the_same_order_every_time() -> None:
    values = torch.randn(1_000_000, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    places = torch.randint(100, (1_000_000,), device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    with repeatable():
        sums = [torch.zeros(100, device="cuda").index_add(0, places, values) for _ in range(5)]
    assert all(torch.equal(found, sums[0]) for found in sums)
