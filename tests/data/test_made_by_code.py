"""Data made by code: drawings, sounds, tables with known density, text of the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from fastar.data import audio, drawings, sets, tables, text


@pytest.mark.parametrize("draw", [drawings.strokes, drawings.silhouettes])
def test_drawings_are_binary_and_neither_empty_nor_full(draw):
    train, test = draw(150, 20, 24, seed=1)
    assert train.shape == (120, 20, 24)
    assert test.shape == (30, 20, 24)
    everything = torch.cat([train, test])
    assert everything.dtype == torch.int64
    assert set(everything.unique().tolist()) == {0, 1}
    ink = everything.double().mean((1, 2))
    assert ink.min() > 0.01
    assert ink.max() < 0.6
    assert len(everything.flatten(1).unique(dim=0)) == 150
    assert torch.equal(draw(150, 20, 24, seed=1).train, train)
    assert not torch.equal(draw(150, 20, 24, seed=2).train, train)


def test_a_tables_samples_have_the_entropy_of_its_density():
    for known, sides in ((tables.mixture(20000, seed=3), 12), (tables.rings(20000), 4)):
        axis = torch.linspace(-sides, sides, 1201)
        density = known.log_prob(torch.cartesian_prod(axis, axis)).double().exp()
        cell = (2 * sides / 1200) ** 2
        assert math.isclose(float(density.sum() * cell), 1, abs_tol=0.01)
        entropy = -float(torch.xlogy(density, density).sum() * cell)
        assert math.isclose(-float(known.log_prob(known.train).mean()), entropy, abs_tol=0.05)


def test_a_chains_density_is_its_law():
    known = tables.chain(4000, 3, 0.8)
    x = torch.cartesian_prod(*[torch.arange(2)] * 3)
    p = known.log_prob(x).exp()
    assert math.isclose(float(p.sum()), 1, abs_tol=1e-6)
    index = (known.train * torch.tensor([4, 2, 1])).sum(1)
    found = torch.bincount(index, minlength=8) / len(index)
    torch.testing.assert_close(found, p, rtol=0, atol=0.03)


def test_chirps_glide_and_strings_decay():
    chirps = audio.chirps(4, 4000, seed=1)
    spectrum = torch.stft(chirps, 256, window=torch.hann_window(256), return_complex=True).abs()
    peaks = spectrum.argmax(1)[:, 2:-2]
    step = peaks.diff(dim=1)
    assert bool(((step >= -1).all(1) | (step <= 1).all(1)).all())
    assert bool((peaks[:, -1] != peaks[:, 0]).any())
    strings = audio.strings(4, 8000, seed=1)
    assert bool((strings[:, -1000:].std(1) < 0.3 * strings[:, :1000].std(1)).all())


def test_a_vowel_is_strong_at_its_formants():
    sound = audio.vowels(8, 8000, seed=2)
    assert sound.shape == (8, 8000)
    power = torch.fft.rfft(sound).abs() ** 2
    # Everything that a formant lifts lies below 3.2 kHz.
    assert bool((power[:, :3200].sum(1) > 0.95 * power.sum(1)).all())
    for one in (audio.chirps(3, 500), audio.strings(3, 500), sound):
        assert bool((one.abs() <= 1).all())


def test_mu_law_is_finest_around_silence():
    symbols = torch.arange(256)
    assert torch.equal(audio.mu_law(audio.from_mu_law(symbols)), symbols)
    levels = audio.from_mu_law(symbols)
    assert (levels[0], levels[-1]) == (-1, 1)
    assert levels.diff().min() < 0.02 * levels.diff().max()
    x = 2 * torch.rand(1000) - 1
    assert float((audio.from_mu_law(audio.mu_law(x)) - x).abs().max()) < 0.03


def test_the_interpreters_topics_as_symbols():
    found = text.topics()
    assert len(found.train) > 200_000
    assert "The " in found.decode(found.train)
    assert torch.equal(text.encode(found.decode(found.test[:500]), found.alphabet), found.test[:500])
    with pytest.raises(ValueError, match=r"text: .* is none of the alphabet.s 3 characters"):
        text.encode("a☃", "abc")
    assert text.windows(torch.arange(10), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match=r"length: expected 1 to 10"):
        text.windows(torch.arange(10), 11)


@pytest.mark.parametrize("name", sets.NAMES)
def test_every_named_set(name):
    found = sets.find(name, 64 if name in ("topics", "chirps", "strings", "vowels") else None)
    assert found.name == name
    assert len(found.train) > len(found.test) > 0
    assert found.train.shape[1:] == found.test.shape[1:]
    if found.levels is None:
        assert found.train.is_floating_point()
    else:
        assert not found.train.is_floating_point()
        for part in (found.train, found.test):
            assert int(part.min()) >= 0
            assert int(part.max()) < found.levels
    assert found.describe()["shape"] == list(found.train.shape[1:])


def test_what_is_no_data_set_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"data: 'mnist' is no file or folder, and none of digits, "):
        sets.find("mnist")
    (tmp_path / "notes.pdf").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected a folder of .png or .bin, or a .bin, .wav"):
        sets.find(str(tmp_path / "notes.pdf"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: drawings.strokes(0), r"n: expected a positive integer"),
        (lambda: drawings.silhouettes(4, test_fraction=2), r"test_fraction: expected a number from 0 to 1"),
        (lambda: tables.chain(keep=1.0), r"keep: expected a probability between 0 and 1"),
        (lambda: tables.rings(radii=(0.1,)), r"radii: expected radii of at least 8 widths"),
        (lambda: audio.mu_law(torch.zeros(1), 1), r"levels: expected at least 2"),
        (lambda: audio.chirps(length=0), r"length: expected a positive integer"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
