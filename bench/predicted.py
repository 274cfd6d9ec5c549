"""What the CUDA executor's planner predicts for the cases that have a goal: counts of the assembled plan, and a time.

    python -m fastar.bench.predicted --docs docs/cuda-executor.md

Needs no card: the one that is planned for is described here. Nothing is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from fastar.bench.cases.sampling import pixelcnn, transformer
from fastar.bench.pages import with_section
from fastar.models import MADE, NADE, CharRNN, WaveNet
from fastar.sampling import Program, cuda_plan
from fastar.sampling.cuda_plan import Wishes

START, END = "<!-- predicted times -->\n", "<!-- end of predicted times -->\n"

H200 = SimpleNamespace(
    name="H200", multiprocessors=132, shared_per_block=232448, max_cluster=16, l2_bytes=50 * 2**20, memory_bytes=141e9
)


@dataclass(frozen=True)
class Prediction:
    """A case, and the microseconds a position that are its goal."""

    name: str
    make: Callable[[], Program]
    rows: int
    goal: float
    precision: str = "float16"


def _wavenet(residual: int, skip: int, layers: int) -> Callable[[], Program]:
    return lambda: WaveNet(256, residual, skip, layers).lower()


def _pixelcnn() -> Program:
    return pixelcnn.make_model(32, 32, 128, 8, 256).lower()


def _gpt2() -> Program:
    return transformer.make_model(transformer.GPT2).lower()


_PIXELS = 32 * 32 * pixelcnn.COLOURS
_CASES = [
    *(Prediction("NADE 784x500", lambda: NADE(784, 500).lower(), n, 200 / 784, "float32") for n in (1, 64, 1024)),
    Prediction("MADE 784-8000-784", lambda: MADE(784, 8000).lower(), 64, 3000 / 784, "float32"),
    *(
        Prediction("WaveNet R=64 S=256, 20 layers", _wavenet(64, 256, 20), rows, goal)
        for rows, goal in ((1, 12.0), (16, 14.0), (128, 25.0))
    ),
    Prediction("WaveNet R=64 S=128, 30 layers", _wavenet(64, 128, 30), 1, 16.0),
    *(
        Prediction("WaveNet R=128 S=256, 30 layers", _wavenet(128, 256, 30), rows, goal)
        for rows, goal in ((1, 35.0), (128, 50.0))
    ),
    *(
        Prediction("char-RNN 3 x 512", lambda: CharRNN(128, 512, 3).lower(), rows, goal)
        for rows, goal in ((1, 5.0), (64, 8.0))
    ),
    *(
        Prediction("PixelCNN 7x7, 8 x (3x3, 128), 32x32", _pixelcnn, rows, goal / _PIXELS)
        for rows, goal in ((1, 6000.0), (64, 15000.0))
    ),
    *(Prediction("GPT-2 124M", _gpt2, rows, goal, "bfloat16") for rows, goal in ((1, 110.0), (16, 160.0))),
]
_COLUMNS = (
    "case",
    "rows",
    "weights",
    "schedule",
    "rows x blocks of a team",
    "commands",
    "meetings of a block",
    "of a team",
    "edges",
    "taps fetched",
    "streamed",
    "KB a block reads (of them kept)",
    "stages of a ring",
    "predicted us",
    "goal us",
)


def line(one: Prediction) -> list[str]:
    """A row of the table: all counts are of the plan's code, each command once."""
    program = one.make()
    held, pack = cuda_plan.packer(program, one.precision)
    wishes = Wishes(rows=one.rows)
    packed, plan, _ = cuda_plan.choose(program, pack, H200, wishes, lambda _: H200.multiprocessors, contents=False)
    del held
    tally = packed.tally
    cells = [one.name, one.rows, one.precision, plan.name, f"{plan.rows_per_team} x {plan.blocks_per_team}"]
    cells += [tally[name] for name in ("commands", "block_meetings", "team_meetings", "edges", "fetches", "streams")]
    cells += [f"{tally['weight_bytes'] / 1024:.0f} ({tally['resident_bytes'] / 1024:.0f})", packed.stages]
    return [*map(str, cells), f"{plan.predicted_us:.2f}", f"{one.goal:.2f}"]


def table() -> str:
    """All cases, in Markdown."""
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS), *map(line, _CASES)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def main() -> None:
    """Print the table, or put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, help="the page whose table is replaced")
    arguments = parser.parse_args()
    found = table()
    print(found)
    if arguments.docs is not None:
        try:
            page = with_section(arguments.docs, START, END, START + found + END)
        except (OSError, ValueError) as error:
            parser.error(f"--docs: {error}")
        arguments.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
