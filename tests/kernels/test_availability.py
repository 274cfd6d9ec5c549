"""Why Triton's kernels decline, which settings of torch they follow, and that importing fastar does not load Triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from processes import SITE

from fastar.ops import _triton


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_installed", lambda: False)
    assert _triton.why_not(torch.device("cuda", 0), torch.float32) == "triton is not installed"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_unsupported_dtype(dtype: torch.dtype) -> None:
    assert str(dtype).removeprefix("torch.") in str(_triton.why_not(torch.device("cuda", 0), dtype))


def test_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert "CUDA device" in str(_triton.why_not(cpu, torch.float32))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _triton.why_not(cpu, torch.float32) is None
    assert _triton.why_not(cpu, torch.float16) is None
    assert "bfloat16" in str(_triton.why_not(cpu, torch.bfloat16))
    assert "CPU tensors" in str(_triton.why_not(torch.device("cuda", 0), torch.float32))


@pytest.mark.parametrize(
    ("capability", "declines"), [((7, 5), True), ((8, 0), False), ((9, 0), False), ((12, 0), False)]
)
def test_old_cards(capability: tuple[int, int], declines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _triton._card_declines.cache_clear()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    try:
        reason = _triton.why_not(torch.device("cuda", 0), torch.bfloat16)
    finally:
        _triton._card_declines.cache_clear()
    assert (reason is not None) == declines
    assert not declines or "7.5" in str(reason)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", False),
        ("torch.backends.cuda.matmul.allow_tf32 = True", True),
        ("torch.set_float32_matmul_precision('high')", True),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", True),
        ("torch.backends.fp32_precision = 'tf32'", True),
        ("torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'", False),
    ],
)
def test_tf32_follows_torch_through_either_api(setting: str, expected: bool) -> None:
    # Mixing the two APIs in one process makes torch raise: one process for each.
    program = f"import torch\n{setting}\nfrom fastar.ops import _triton\nprint(_triton.allow_tf32())"
    assert _run(program) == str(expected)


def test_importing_fastar_does_not_load_triton() -> None:
    program = "import sys, fastar, fastar.ops, fastar.nn\nprint('fastar.kernels.masked_linear' in sys.modules)"
    assert _run(program) == "False"
    # torch may have loaded Triton by itself.
    program = (
        "import sys, torch\n"
        "before = 'triton' in sys.modules\n"
        "import fastar.ops\n"
        "print(before or 'triton' not in sys.modules)"
    )
    assert _run(program) == "True"


def _run(program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SITE, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
