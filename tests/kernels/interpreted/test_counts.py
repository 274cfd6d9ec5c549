"""What kernels load, store and multiply at the sizes that docs/kernels reports, and that a count is what is run."""

from __future__ import annotations

import math
from typing import Any

import count_kernels
import numpy as np
import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from fastar.kernels import _launch
from fastar.kernels import masked_conv2d as conv


@pytest.fixture(autouse=True)
def _nothing_outside() -> None:
    """Takes the place of the check of addresses, which knows launches that run as a whole."""


def counted(module: str, case: str, most: int = 4) -> dict[str, list[Any]]:
    """Per kernel, the counts of its launches in one case, for sm_90."""
    found: dict[str, list[Any]] = {}
    with np.errstate(all="ignore"):
        for _, one in count_kernels.counts(module, 90, most, case):
            found.setdefault(one.kernel, []).append(one)
    assert found, f"no case of {module} begins with {case!r}"
    return found


def small_convolution() -> None:
    x, weight = torch.randn(2, 6, 5, 7), torch.randn(9, 6, 3, 3)
    looks = [(tap // 3 - 1, tap % 3 - 1, tap) for tap in range(5)]
    source, y = conv.channels_last(x), torch.empty(2, 9, 5, 7).to(memory_format=torch.channels_last)
    conv.tap_sum(source, looks, (1, 1), weight, False, None, -1, None, y, None, "relu", False)
    conv.weight_gradient(source, looks, (1, 1), y, weight, None, -1, False)


def test_counts_are_what_a_real_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted launch by launch without values, and counted while the same launches compute."""
    with _launch.recording(_launch.INTERPRETER) as launches:
        small_convolution()
    apart = [count_kernels.count(launch, 1 << 30) for launch in launches]

    loaded, stored, operations = [], [], []
    load, store, dot = (getattr(interpreter_builder, f"create_{n}") for n in ("masked_load", "masked_store", "dot"))

    def size(pointers: Any, mask: Any) -> int:
        return int(np.broadcast_to(mask.data, pointers.data.shape).sum()) * pointers.get_element_ty().primitive_bitwidth

    def loading(pointers: Any, mask: Any, *rest: Any) -> Any:
        loaded.append(size(pointers, mask))
        return load(pointers, mask, *rest)

    def storing(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        stored.append(size(pointers, mask))
        return store(pointers, value, mask, *rest)

    def multiplying(a: Any, b: Any, *rest: Any) -> Any:
        operations.append(2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(a, b, *rest)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", loading)
    monkeypatch.setattr(interpreter_builder, "create_masked_store", storing)
    monkeypatch.setattr(interpreter_builder, "create_dot", multiplying)
    small_convolution()
    assert sum(one.loaded for one in apart) == sum(loaded) / 8
    assert sum(one.stored for one in apart) == sum(stored) / 8
    assert sum(one.operations for one in apart) == sum(operations) > 0


@pytest.mark.parametrize(("case", "taps"), [("bfloat16, (256, 256), 3", 5), ("bfloat16, (256, 256), 5", 13)])
def test_convolution_multiplies_surviving_taps_alone(case: str, taps: int) -> None:
    found = counted("masked_conv2d", case)
    least = 2 * 64 * 32 * 32 * 256 * 256 * taps
    forward, by_input = found["tap_sum_kernel"]
    (by_weight,) = found["weight_gradient_kernel"]
    assert forward.operations == by_input.operations == least
    # Chunks of positions end where they fill the card, not where a step ends.
    assert least <= by_weight.operations * 1.02 <= 1.04 * least
    results = 2 * 64 * 32 * 32 * 256
    assert by_input.stored == results
    # gelu keeps what comes before it.
    assert forward.stored == results * (2 if "3" in case[-1] else 1)


def test_few_input_channels_share_a_step() -> None:
    forward, _ = counted("masked_conv2d", "float16, (3, 128), 7")["tap_sum_kernel"]
    # 25 taps of 3 channels are 75 columns, in two steps of 64.
    assert forward.operations == 2 * 64 * 32 * 32 * 128 * 128
    assert forward.loaded < 20e6


# The parameters' bytes, positions, channels of x, and how often the gradient reads the parameters.
HEADS = {
    "categorical float32, rows": (196608 * 256 * 4, 196608, 2, 2.02),
    "categorical bfloat16, columns": (196608 * 256 * 2, 196608, 2, 2.03),
    "categorical float16, long rows": (512 * 65536 * 2, 512, 2, 2.02),
    "logistic float32, columns": (65536 * 100 * 4, 65536, 3, 2.4),
    "gaussian float32, rows": (65536 * 30 * 4, 65536, 1, 1.8),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_read_their_parameters_once(case: str) -> None:
    size, positions, channels, again = HEADS[case]
    found = counted("heads", case, 2)
    (forward,), (backward,) = (tuple(launches) for launches in found.values())
    # Beside the parameters: x, a colour once more for each later one, and of a categorical the chosen logit.
    beside = 4 * positions * (channels + math.comb(channels, 2)) + 4 * positions
    assert size <= forward.loaded <= size + beside
    assert forward.stored == 4 * positions
    assert backward.loaded <= again * size
    # A Gaussian's data has a gradient too.
    assert backward.stored == size + (4 * positions if case.startswith("gaussian") else 0)


def test_the_program_says_what_it_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "compile_cases", lambda: iter([("small", small_convolution)]))
    monkeypatch.setitem(count_kernels.TARGETS, 0, _launch.INTERPRETER)
    count_kernels.main("masked_conv2d", 0, 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all('"module": "masked_conv2d", "case": "small"' in line for line in lines)
