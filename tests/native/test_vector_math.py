"""csrc/cpu/isa/vector_math.h at each vector level, against numpy in float64 and long double."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastar.native import core, why_missing

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
LEVELS = FLAGS if platform.machine().lower() in {"x86_64", "amd64"} else {"baseline": []}

Function = Callable[[np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# Name, exact function, smallest and greatest argument of the dense test, allowed units in the last place.
FUNCTIONS: list[tuple[str, Function, float, float, float]] = [
    ("exp", np.exp, -103.9, 88.7, 2),
    ("sigmoid", sigmoid, -87.0, 105.0, 3),
    ("tanh", np.tanh, -12.0, 12.0, 3),
    ("log", np.log, 1e-45, 3e38, 2),
    ("log1p", np.log1p, -0.9999999, 3e38, 3),
    ("softplus", softplus, -103.0, 103.0, 3),
]


@pytest.fixture(scope="module", params=LEVELS)
def apply(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    level = request.param
    if why_missing() is None and level not in core().levels_usable():
        pytest.skip(f"this CPU has no {level}")
    out = tmp_path_factory.mktemp("vector_math") / level
    flags = [
        "-std=c++20",
        "-O2",
        "-Wall",
        "-Werror",
        "-Wno-maybe-uninitialized",
        "-fno-math-errno",
        "-ffp-contract=off",
    ]
    source = HERE / "vector_math.cpp"
    command = ["c++", *flags, *LEVELS[level], f"-I{CSRC}", f"-DFASTAR_ISA={level}", str(source), "-o", str(out)]
    subprocess.run(command, check=True)

    def run(name: str, x: np.ndarray) -> np.ndarray:
        data = subprocess.run([str(out), name], input=x.tobytes(), capture_output=True, check=True).stdout
        return np.frombuffer(data, dtype=np.float32)

    return run


def arguments(low: float, high: float) -> np.ndarray:
    """Evenly spaced ones, and as many evenly spaced in the bits: all magnitudes of both signs."""
    even = np.linspace(low, high, 100_001)
    bits = np.arange(0, 0x7F800000, 21_313, dtype=np.int64).astype(np.uint32).view(np.float32)
    x = np.concatenate([even, np.linspace(-1, 1, 100_001), bits, -bits]).astype(np.float32)
    return x[(x >= low) & (x <= high)]


@pytest.mark.parametrize(("name", "exact", "low", "high", "allowed"), FUNCTIONS, ids=[one[0] for one in FUNCTIONS])
def test_error_in_units_of_the_last_place(
    apply: Callable[..., np.ndarray], name: str, exact: Function, low: float, high: float, allowed: float
) -> None:
    x = arguments(low, high)
    want = exact(x.astype(np.longdouble))
    # The unit of the last place of the result; in the denormal range, the smallest denormal.
    unit = np.spacing(np.abs(want).astype(np.float32)).astype(np.longdouble)
    error = np.abs(apply(name, x).astype(np.longdouble) - want) / unit
    worst = int(error.argmax())
    assert error[worst] <= allowed, f"{name}({x[worst]!r}): {float(error[worst]):.2f} units"


def test_special_arguments(apply: Callable[..., np.ndarray]) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([nan, inf, -inf, 0.0, -0.0, 200.0, -200.0, -1.0, 1e-45], dtype=np.float32)
    expected = {
        "exp": [nan, inf, 0, 1, 1, inf, 0, np.exp(-1), 1],
        "tanh": [nan, 1, -1, 0, -0.0, 1, -1, np.tanh(-1), 1e-45],
        "log": [nan, inf, nan, -inf, -inf, np.log(200), nan, nan, np.log(np.float64(np.float32(1e-45)))],
        "log1p": [nan, inf, nan, 0, -0.0, np.log1p(200), nan, -inf, 1e-45],
        "softplus": [nan, inf, 0, np.log(2), np.log(2), 200, 0, softplus(np.float64(-1)), np.log(2)],
    }
    for name, values in expected.items():
        found = apply(name, x)
        np.testing.assert_allclose(found, np.array(values, dtype=np.float32), rtol=4e-7, atol=0, err_msg=name)
        zeros = np.array(values) == 0
        if name in {"tanh", "log1p"}:
            assert (np.signbit(found[zeros]) == np.signbit(np.array(values)[zeros])).all(), name
    extremes = apply("sigmoid", x)
    np.testing.assert_allclose(
        extremes, [nan, 1, 0, 0.5, 0.5, 1, 0, sigmoid(np.float64(-1)), 0.5], rtol=4e-7, atol=2e-38
    )


@pytest.mark.parametrize("count", range(1, 18))
def test_partial_vectors_touch_nothing_else(apply: Callable[..., np.ndarray], count: int) -> None:
    x = np.linspace(-2, 2, count).astype(np.float32)
    np.testing.assert_allclose(apply("exp", x), np.exp(x), rtol=4e-7)
