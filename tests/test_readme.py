"""What README.md promises: its snippet runs, its figures are measured ones, its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RESULTS = ROOT / "bench/results/masked_linear_cpu.json"


def command(name: str) -> str:
    (found,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)\n```\n", README, flags=re.DOTALL)
    return found


def test_the_snippet_runs_and_is_autoregressive() -> None:
    snippet = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert snippet is not None
    names: dict[str, object] = {}
    printed = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
        torch.manual_seed(0)
        exec(snippet.group(1), names)
    # An untrained model of D fair coins.
    assert float(printed.getvalue().split()[-2]) == pytest.approx(784 * 0.6931, rel=0.02)
    made, x = names["made"], names["x"]
    assert isinstance(made, torch.nn.Sequential)
    assert isinstance(x, torch.Tensor)
    for layer in made:
        assert (layer.weight.grad[~layer.dense_mask()] == 0).all()
        assert (layer.weight.grad != 0).any()
    with torch.no_grad():
        before = made(x[:1])
        for d in (0, 391):
            changed = x[:1].clone()
            changed[0, d] = 1 - changed[0, d]
            differs = (made(changed) != before)[0]
            assert not differs[: d + 1].any()
            assert differs[d + 1 :].any()


@pytest.mark.parametrize(
    ("name", "extra", "runs"),
    [("demo", "cli", ".venv/bin/fastar demo"), ("test", "test", ".venv/bin/pytest -n auto --dist worksteal")],
)
def test_the_commands_set_up_what_they_run(name: str, extra: str, runs: str) -> None:
    line = command(name)
    assert "\n" not in line
    steps = line.split(" && ")
    assert steps == ["python3 -m venv .venv", f".venv/bin/pip install torch==2.13.0 '.[{extra}]'", runs]


def test_nobody_is_told_to_install_the_tar_library() -> None:
    told = re.compile(r"pip3? install (?:-\S+ )*['\"]?fastar(?![-\w])")
    assert told.search("pip install 'fastar[cli]'")
    texts = [*PAGES, *(ROOT / "fastar").rglob("*.py"), ROOT / "pyproject.toml"]
    assert [path for path in texts if told.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{page.name}: {target}"


@pytest.mark.skipif(not RESULTS.exists(), reason="no result of the benchmark is kept under bench/results")
def test_the_figures_are_those_that_were_measured() -> None:
    assert measured_section(json.loads(RESULTS.read_text(encoding="utf-8"))) in README


def measured_section(results: list[dict[str, object]]) -> str:
    """The README's section on speed, made from what `fastar bench masked_linear --device cpu --json` wrote."""
    from fastar.bench.report import time_text

    assert [one["device"] for one in results] == ["cpu"] * len(results)
    names = list(results[0]["alternatives"])
    lines = [
        f"| masked linear | fastar | {' | '.join(names)} |",
        "|---|" + "---|" * (1 + len(names)),
    ]
    for one in results:
        _, size, dtype, direction = one["case"].split(".")
        cells = [f"{size} {dtype}, {direction}", f"**{time_text(one['ours_us'])}**"]
        for name in names:
            us = one["alternatives"][name]
            cells.append(f"{time_text(us)} ({us / one['ours_us']:.2f}x)")
        lines.append(f"| {' | '.join(cells)} |")
    machine, threads = results[0]["machine"], results[0]["threads"]
    return (
        "<!-- measured: bench/results/masked_linear_cpu.json -->\n"
        + "\n".join(lines)
        + f"\n\nMedians on {machine['processor']}, {threads} threads, torch {machine['torch']}; the mask leaves half."
        + "\nIn brackets, how many times fastar's. In forward+backward the weights change in every step.\n"
        + "<!-- end of measured -->\n"
    )
