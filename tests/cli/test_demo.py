"""`fastar demo`: its model is a proper autoregressive distribution, it learns, and it says clearly what is wrong."""

from __future__ import annotations

import io
import itertools
import math
import re
import sys

import pytest
import torch
from rich.console import Console

from fastar import cli
from fastar.cli import demo as demo_module
from fastar.data import digits

SMALL = {"epochs": 20, "hidden": 256, "seed": 0}


@pytest.fixture(scope="module")
def outcome():
    return demo_module.run(digits.load(), console=Console(quiet=True), **SMALL)


@pytest.fixture
def tiny():
    """A model small enough to enumerate, with weights large enough to be far from uniform."""
    torch.manual_seed(5)
    model = demo_module.DigitModel(hidden=13, pixels=3, levels=3, classes=2, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.0)
    return model.eval()


def every_picture(model):
    return torch.tensor(list(itertools.product(range(model.levels), repeat=model.pixels)))


def test_probabilities_of_all_pictures_sum_to_one_for_each_digit(tiny):
    x = every_picture(tiny)
    for digit in range(tiny.classes):
        total = tiny.log_prob(x, torch.full((len(x),), digit)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_a_pixels_logits_depend_on_every_earlier_pixel_and_on_no_other():
    torch.manual_seed(1)
    model = demo_module.DigitModel(hidden=1024).eval()
    x = torch.randint(digits.LEVELS, (1, model.pixels))
    digit = torch.tensor([3])
    before = model(x, digit)[0]
    for d in range(model.pixels):
        changed = x.clone()
        changed[0, d] = (changed[0, d] + 8) % digits.LEVELS
        differs = (model(changed, digit)[0] != before).any(1)
        assert not differs[: d + 1].any()
        assert differs[d + 1 :].all()
    assert (model(x, torch.tensor([4]))[0] != before).any(1).all()


def test_samples_follow_the_probabilities(tiny):
    x = every_picture(tiny)
    count = 20_000
    digit = torch.ones(count, dtype=torch.long)
    expected = count * tiny.log_prob(x, digit[: len(x)]).exp().detach().double()
    place = torch.tensor([9, 3, 1])
    found = torch.bincount(tiny.sample(digit, seed=11) @ place, minlength=len(x)).double()
    # Cells that expect fewer than five are counted together, as the test's approximation asks for.
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    statistic = ((found - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    freedom = len(expected) - 1
    # Wilson and Hilferty: the cube root of a chi-squared over its freedom is normal; 4 sigma is one run in 30,000.
    spread = math.sqrt(2 / (9 * freedom))
    assert (statistic / freedom) ** (1 / 3) < 1 - spread**2 + 4 * spread


def test_it_learns(outcome):
    assert outcome.untrained == pytest.approx(math.log2(digits.LEVELS), abs=0.2)
    assert len(outcome.epochs) == SMALL["epochs"]
    assert outcome.epochs[-1].held_out < 2.3
    assert outcome.epochs[-1].train < outcome.epochs[0].train


def test_samples_are_digits_more_often_than_chance(outcome):
    assert outcome.real_read > 0.97
    assert outcome.samples_read > 0.35
    assert outcome.samples.shape == (digits.CLASSES * demo_module.READ_PER_DIGIT, digits.HEIGHT, digits.WIDTH)
    assert (outcome.samples.min(), outcome.samples.max()) == (0, digits.LEVELS - 1)


def test_the_seed_decides_everything_and_leaves_torch_as_it_was():
    data = digits.load()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    one, same, other = (demo_module.run(data, 32, 1, seed, Console(quiet=True)) for seed in (7, 7, 8))
    assert one.epochs == same.epochs
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, other.samples)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("width", [20, 40, 80, 132, 240])
def test_the_screen_fits_its_width(outcome, width):
    console = Console(width=width, height=25, record=True, file=io.StringIO())
    demo_module.show(outcome, console)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = " ".join(" ".join(lines).split())
    for part in ("real", "sampled", f"{outcome.untrained:.2f}", f"{outcome.epochs[-1].held_out:.2f}"):
        assert part in text


def test_the_command_prints_the_result_and_writes_a_picture(tmp_path, capsys):
    out = tmp_path / "some name.png"
    with pytest.raises(SystemExit) as stop:
        cli.run(["demo", "--epochs", "2", "--hidden", "64", "--seed", "3", "--out", str(out)])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"wrote {out.resolve()}" in printed.splitlines()
    before, after = map(float, re.search(r"held-out bits per dim +([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before
    header = out.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    assert width > 800
    assert height > 800


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected an integer from 1 to 1000000, got 0"),
        (["--hidden", "-5"], "--hidden: expected an integer from 1 to 8192, got -5"),
        (["--hidden", "1000000"], "--hidden: expected an integer from 1 to 8192, got 1000000"),
        (["--seed", "-1"], "--seed: expected an integer from 0 to 2^63 - 1, got -1"),
        (["--out", "picture.jpg"], "--out: expected a file name that ends in .png, got 'picture.jpg'"),
        (["--out", "no/such/folder.png"], "--out: the folder 'no/such' does not exist"),
        (["--out", "taken.png"], "--out: expected a file name, and 'taken.png' is a folder"),
    ],
)
def test_a_bad_option_gives_one_line_and_trains_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        cli.run(["demo", *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"fastar demo: {message}\n"
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


@pytest.mark.parametrize("missing", ["matplotlib", "rich", "sklearn"])
def test_a_missing_extra_is_named(missing, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing or name.startswith("fastar.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("demo", "pictures"):
        monkeypatch.delattr(cli, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.run(["demo"])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 1
    assert "pip install 'fastar-kernels[cli]'" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_at_its_default_size_most_samples_are_read_as_intended():
    outcome = demo_module.run(digits.load(), console=Console(quiet=True), epochs=60, hidden=512, seed=0)
    assert outcome.epochs[-1].held_out < 2.0
    assert outcome.samples_read > 0.85
