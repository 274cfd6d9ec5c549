"""What `import fastar` may do: almost nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import SITE

# Every public package; the loop keeps those honest that are added later.
EVERYTHING = "import fastar\nfor name in fastar._SUBPACKAGES:\n    getattr(fastar, name)\n"
LIMIT_SECONDS = 0.3

AUDITED = f"""
import os, sys, torch
WATCHED = {{"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.rename",
           "os.remove", "os.link", "os.symlink", "socket.connect", "tempfile.mkstemp", "tempfile.mkdtemp"}}
LATER = {{"triton", "torch.utils.cpp_extension", "torch._inductor", "rich", "typer", "matplotlib", "sklearn"}}
seen = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append((event, str(arguments[0])))
    elif event in WATCHED:
        seen.append((event, str(arguments)))
def touched(*arguments, **options):
    raise AssertionError("importing fastar asked torch about CUDA devices")
sys.addaudithook(watch)
for name in ("is_available", "device_count", "current_device", "get_device_properties", "get_device_capability"):
    setattr(torch.cuda, name, touched)
before = set(sys.modules)
{EVERYTHING}
assert not seen, seen
assert not torch.cuda.is_initialized()
assert not LATER & (set(sys.modules) - before), LATER & (set(sys.modules) - before)
"""


def in_new_process(program: str, **environment: str) -> str:
    done = subprocess.run(
        # -B: the interpreter's own __pycache__ is not ours to judge.
        [sys.executable, "-B", "-c", program],
        cwd=SITE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_writes_nothing_compiles_nothing_and_leaves_cuda_alone(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    in_new_process(AUDITED, **{name: str(folder) for name, folder in folders.items()})
    # The audit sees what Python does; native code would leave its files here.
    assert [path for folder in folders.values() for path in folder.rglob("*")] == []


def test_import_costs_little_beside_torch() -> None:
    # Processor time: a busy machine's other work is not the import's. Nor is a turn of the garbage collector, which
    # walks torch's objects and falls where it falls.
    program = (
        "import gc, time, torch\ngc.disable()\nbegin = time.process_time()\n"
        f"{EVERYTHING}\nprint(time.process_time() - begin)"
    )
    seconds = sorted(float(in_new_process(program)) for _ in range(3))
    assert seconds[0] < LIMIT_SECONDS, f"importing fastar after torch took {seconds} s, the limit is {LIMIT_SECONDS} s"


def test_import_alone_does_not_load_torch() -> None:
    assert in_new_process("import sys, fastar; print('torch' in sys.modules)").strip() == "False"
