"""`fastar demo`: its models are proper autoregressive distributions, they learn, and it says clearly what is wrong."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
import sys

import pytest
import torch
from rich.console import Console

from fastar import cli
from fastar.cli import _demo_digits, _demo_sequences, _demo_speed
from fastar.data import audio, digits, sets
from fastar.models import MADE, CharRNN

SMALL = {"epochs": 20, "hidden": 256, "seed": 0}


@pytest.fixture(scope="module")
def drawn():
    return _demo_digits.run(digits.load(), console=Console(quiet=True), **SMALL)


def first_pieces(name, length, count):
    data = sets.find(name, length)
    return dataclasses.replace(data, train=data.train[:count], test=data.test[:64])


def small(task):
    return dataclasses.replace(task, rows=2, length=160, timed_rows=2, timed_length=24)


@pytest.fixture(scope="module")
def written():
    task = small(_demo_sequences.writing(hidden=128, epochs=30))
    return _demo_sequences.run(task, first_pieces("topics", 64, 1024), 0, Console(quiet=True))


@pytest.fixture(scope="module")
def sung():
    # In so few steps it gets anywhere only by long ones.
    task = dataclasses.replace(small(_demo_sequences.singing(hidden=256, epochs=20)), learning_rate=2e-2)
    return _demo_sequences.run(task, first_pieces("vowels", 128, 768), 0, Console(quiet=True))


@pytest.fixture
def tiny():
    """A model small enough to enumerate, with weights large enough to be far from uniform."""
    torch.manual_seed(5)
    model = MADE(3, [13, 13], {"kind": "categorical", "levels": 3}, cond_dim=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.0)
    return model.eval()


def every_picture():
    return torch.tensor(list(itertools.product(range(3), repeat=3)))


def test_a_pixels_logits_depend_on_every_earlier_pixel_and_on_no_other():
    torch.manual_seed(1)
    model = _demo_digits.network(hidden=1024).eval()
    x = torch.randint(digits.LEVELS, (1, model.dim))
    digit = torch.tensor([3])
    before = model(x, digit)[0]
    for d in range(model.dim):
        changed = x.clone()
        changed[0, d] = (changed[0, d] + 8) % digits.LEVELS
        differs = (model(changed, digit)[0] != before).any(1)
        assert not differs[: d + 1].any()
        assert differs[d + 1 :].all()
    assert (model(x, torch.tensor([4]))[0] != before).any(1).all()


@pytest.mark.parametrize("way", ["native", "full passes"])
def test_samples_follow_the_probabilities_either_way(tiny, way):
    x = every_picture()
    count = 20_000
    digit = torch.ones(count, dtype=torch.long)
    expected = count * tiny.log_prob(x, digit[: len(x)]).exp().detach().double()
    place = torch.tensor([9, 3, 1])
    if way == "native":
        samples, _ = _demo_speed.draw(tiny, count, cond=digit, seed=11)
    else:
        samples = _demo_speed.by_full_passes(tiny, count, cond=digit, seed=11)
    found = torch.bincount(samples @ place, minlength=len(x)).double()
    # Cells that expect fewer than five are counted together, as the test's approximation asks for.
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    statistic = ((found - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    freedom = len(expected) - 1
    # Wilson and Hilferty: the cube root of a chi-squared over its freedom is normal; 4 sigma is one run in 30,000.
    spread = math.sqrt(2 / (9 * freedom))
    assert (statistic / freedom) ** (1 / 3) < 1 - spread**2 + 4 * spread


def test_either_way_a_sequence_reads_what_was_drawn():
    torch.manual_seed(0)
    model = CharRNN(4, hidden=3).eval()
    with torch.no_grad():
        # The next symbol is the one after the last: nearly all probability is on 0 1 2 3 0 1 ...
        model.embed.weight.copy_(torch.eye(4)[:, :3])
        model.cells.weight_ih_l0.copy_(8 * torch.eye(3))
        model.cells.weight_hh_l0.zero_()
        model.cells.bias_ih_l0.zero_()
        model.cells.bias_hh_l0.zero_()
        model.head.weight.copy_(40 * torch.eye(4)[[3, 0, 1, 2]][:, :3].contiguous())
        model.head.bias.copy_(torch.tensor([20.0, 0.0, 0.0, 0.0]))
    expected = (torch.arange(9) % 4).expand(8, 9)
    assert torch.equal(_demo_speed.by_full_passes(model, 8, length=9), expected)
    assert torch.equal(_demo_speed.draw(model, 8, length=9)[0], expected)


def test_it_learns_to_draw(drawn):
    assert drawn.untrained == pytest.approx(math.log2(digits.LEVELS), abs=0.2)
    assert len(drawn.epochs) == SMALL["epochs"]
    assert drawn.epochs[-1].held_out < 2.3
    assert drawn.epochs[-1].train < drawn.epochs[0].train


def test_it_learns_to_write_and_to_sing(written, sung):
    for outcome in (written, sung):
        assert outcome.untrained == pytest.approx(math.log2(outcome.data.levels), abs=0.3)
        assert len(outcome.held_out) == 2
        assert outcome.best < outcome.untrained - 0.5
        assert outcome.samples.shape == (2, 160)
        assert 0 <= outcome.samples.min() <= outcome.samples.max() < outcome.data.levels
        assert (outcome.speed.rows, outcome.speed.positions) == (2, 24)
        assert min(outcome.speed.native_seconds, outcome.speed.passes_seconds) > 0


def test_samples_are_digits_more_often_than_chance(drawn):
    assert drawn.real_read > 0.97
    assert drawn.samples_read > 0.35
    assert drawn.samples.shape == (digits.CLASSES * _demo_digits.READ_PER_DIGIT, digits.HEIGHT, digits.WIDTH)
    assert (drawn.samples.min(), drawn.samples.max()) == (0, digits.LEVELS - 1)


def test_the_seed_decides_everything_and_leaves_torch_as_it_was():
    data, text = digits.load(), first_pieces("topics", 64, 64)
    task = small(_demo_sequences.writing(hidden=32, epochs=1))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    quiet = Console(quiet=True)
    one, same, other = (_demo_digits.run(data, 32, 1, seed, quiet) for seed in (7, 7, 8))
    assert one.epochs == same.epochs
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, other.samples)
    one, same, other = (_demo_sequences.run(task, text, seed, quiet) for seed in (7, 7, 8))
    assert (one.train, one.held_out) == (same.train, same.held_out)
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, other.samples)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [20, 40, 80, 132, 240])
def test_the_screen_fits_its_width(drawn, written, sung, width, encoding):
    for outcome, show, untrained, trained, parts in (
        (drawn, _demo_digits.show, drawn.untrained, drawn.epochs[-1].held_out, ("real", "sampled")),
        (written, _demo_sequences.show, written.untrained, written.best, ("written",)),
        (sung, _demo_sequences.show, sung.untrained, sung.best, ("real", "sung")),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(width=width, height=25, record=True, file=stream)
        show(outcome, console)
        lines = console.export_text().splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width
        text = " ".join(" ".join(lines).split())
        for part in (*parts, f"{untrained:.2f}", f"{trained:.2f}"):
            assert part in text


def test_the_command_prints_the_results_and_writes_a_picture_and_a_sound(tmp_path, capsys, monkeypatch):
    # A part of the text and of the sounds, to be done in seconds.
    short = {name: first_pieces(name, length, 512) for name, length in (("topics", 64), ("vowels", 256))}
    monkeypatch.setattr(sets, "find", lambda name, length: short[name])
    out = tmp_path / "some name.png"
    with pytest.raises(SystemExit) as stop:
        cli.run(["demo", "--epochs", "2", "--hidden", "64", "--seed", "3", "--out", str(out)])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    sound = out.with_suffix(".wav")
    assert printed.splitlines()[-2:] == [f"wrote {out.resolve()}", f"wrote {sound.resolve()}"]
    scores = re.findall(r"held-out bits per dim +([\d.]+) before, ([\d.]+) after", printed)
    assert len(scores) == 3
    assert all(float(after) < float(before) for before, after in scores)
    header = out.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    assert width > 1500
    assert height > 1000
    heard, rate = audio.read_wav(sound)
    assert (heard.shape, rate) == ((1, 4 * 4000), audio.RATE)
    assert heard.abs().max() > 0.01


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
    for name in ("demo", "pictures", "_demo_digits", "_demo_sequences", "_demo_screen", "_demo_speed"):
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
    outcome = _demo_digits.run(digits.load(), console=Console(quiet=True), epochs=60, hidden=512, seed=0)
    assert outcome.epochs[-1].held_out < 2.0
    assert outcome.samples_read > 0.85
