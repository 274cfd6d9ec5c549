"""Published configurations, by their parameter counts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastar import models
from fastar.models import MAF, NADE, CharRNN, Model, PixelCNNpp


def _dense(*widths: int) -> int:
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def _made(dim: int, hidden: Sequence[int], params: int) -> int:
    # What cyclic degrees let through.
    degrees = [list(range(1, dim + 1)), *([k % (dim - 1) + 1 for k in range(size)] for size in hidden)]
    count = sum(sum(b >= a for a in before for b in after) for before, after in itertools.pairwise(degrees))
    return count + params * sum(b > a for a in degrees[-1] for b in degrees[0]) + sum(hidden) + dim * params


def _maf(dim: int, hidden: int) -> int:
    # Two numbers per dimension in each of five transforms and as many batch norms.
    return 5 * (_made(dim, [hidden, hidden], 2) + 2 * dim)


def _pixelcnn(colours: int, levels: int, width: int, depth: int, head: int) -> int:
    half = width // 2
    block = width * half + half + 9 * half * half + half + half * width + width
    return 49 * colours * width + width + depth * block + _dense(width, head, head, colours * levels)


def _pixelrnn(colours: int, levels: int, hidden: int, depth: int, head: int, *, rows: bool) -> int:
    width = 2 * hidden
    taps, scans, past = (3, 1, 3) if rows else (1, 2, 2)
    lstm = scans * (4 * hidden * width * taps + 4 * hidden + 4 * hidden * hidden * past)
    ends = 49 * colours * width + width + _dense(width, head, head, colours * levels)
    return ends + depth * (lstm + hidden * width + width)


def _gated_pixelcnn(width: int, depth: int, head: int) -> int:
    twice = 2 * width

    def block(inputs: int, size: int) -> int:
        stacks = (size * size + size) * inputs * twice + 2 * twice
        return stacks + twice * twice + twice + width * width + width

    return block(3, 7) + (depth - 1) * block(width, 5) + _dense(width, head, 3 * 256)


def _pixelcnnpp(width: int, depth: int, params: int) -> int:
    # With weight norm every output channel has a length besides its weights and its bias.
    def conv(inputs: int, outputs: int, taps: int) -> int:
        return inputs * outputs * taps + 2 * outputs

    def block(taps: int, other: int) -> int:
        first = conv(2 * width, width, taps) + (conv(2 * other, width, 1) if other else 0)
        return first + conv(2 * width, 2 * width, taps)

    down = 3 * depth * (block(6, 0) + block(4, width))
    up = (3 * depth + 2) * (block(6, width) + block(4, 2 * width))
    between = 4 * (conv(width, width, 6) + conv(width, width, 4))
    return conv(4, width, 6) + conv(4, width, 3) + conv(4, width, 2) + down + up + between + conv(width, params, 1)


def _wavenet(levels: int, residual: int, skip: int, layers: int) -> int:
    block = _dense(2 * residual, 2 * residual) + _dense(residual, residual) + _dense(residual, skip)
    return (levels + 1) * residual + layers * block + _dense(skip, skip, levels)


def _wavenet_of_features() -> int:
    # 128 channels, 24 layers of 3 taps, 80 features, upsampled four times by 4; a length per output channel of each.
    R, F = 128, 80
    block = 2 * R * 3 * R + R * R + R * R + 2 * R * F + 2 * (2 * R + R + R) + 2 * R
    upsampling = 4 * (F * F * 8 + F + F)
    return R + 2 * R + upsampling + 24 * block + R * R + 2 * R + 30 * R + 2 * 30


CONVNADE = ((2, 64, 8), (64, 64, 4), (64, 64, 6), (64, 64, 7), (64, 64, 7), (64, 64, 6), (64, 64, 4), (64, 1, 8))
# The weights that are learned, and for convolutions and recurrences under masks all that are stored.
LEARNED = {
    ("FVSBN", "mnist"): 784 * 785 // 2,
    ("CategoricalSBN", "mnist"): 784 * 783 // 2 * 256 + 784 * 256,
    ("NADE", "mnist"): 2 * 784 * 500 + 500 + 784,
    ("RNADE", "bsds300"): 63 * 512 + 512 + 30 * 63 * 512 + 30 * 63,
    ("DeepNADE", "mnist-1x500"): _dense(2 * 784, 500, 784),
    ("DeepNADE", "mnist-2x500"): _dense(2 * 784, 500, 500, 784),
    ("ConvNADE", "mnist"): sum(a * b * k * k + b for a, b, k in CONVNADE),
    ("DocNADE", "20newsgroups"): 2000 * 50 + 50 + 1999 * 51,
    ("MAF", "power"): _maf(6, 100),
    ("MAF", "gas"): _maf(8, 100),
    ("MAF", "hepmass"): _maf(21, 512),
    ("MAF", "miniboone"): _maf(43, 512),
    ("MAF", "bsds300"): _maf(63, 512),
    ("IAF", "mnist-8x1920"): 8 * _made(32, [1920], 2),
    ("CharRNN", "tanh-3x512"): 128 * 512 + 3 * (512 * 1024 + 1024) + 3 * 512 + _dense(512, 128),
    ("CharRNN", "lstm-2x512"): 128 * 128 + 2048 * (128 + 3 * 512 + 4) + 2 * 2 * 512 + _dense(512, 128),
    ("CharRNN", "lstm-3x512"): 128 * 512 + 3 * 2048 * (1024 + 2) + 2 * 3 * 512 + _dense(512, 128),
    ("PixelCNNpp", "cifar10"): _pixelcnnpp(160, 5, 100),
    ("WaveNet", "nv"): _wavenet(256, 64, 256, 20),
    ("WaveNet", "nv-large"): _wavenet(256, 128, 256, 30),
    ("WaveNet", "ljspeech-mol"): _wavenet_of_features(),
    ("Transformer", "gpt2"): 124_439_808,
    ("Transformer", "gpt2-medium"): 354_823_168,
    ("Transformer", "gpt2-large"): 774_030_080,
    ("Transformer", "gpt2-xl"): 1_557_611_200,
}
STORED = {
    ("MADE", "mnist-1x500"): _dense(784, 500, 784),
    ("MADE", "mnist-1x8000"): _dense(784, 8000, 784),
    ("MADE", "mnist-2x8000"): _dense(784, 8000, 8000, 784),
    ("PixelCNN", "cifar10"): _pixelcnn(3, 256, 256, 15, 1024),
    ("PixelCNN", "mnist"): _pixelcnn(1, 2, 32, 7, 32),
    ("PixelCNN", "plain-32x32"): 49 * 3 * 128 + 128 + 8 * (9 * 128 * 128 + 128) + _dense(128, 768),
    ("PixelRNN", "cifar10-row"): _pixelrnn(3, 256, 128, 12, 1024, rows=True),
    ("PixelRNN", "cifar10-diagonal"): _pixelrnn(3, 256, 128, 12, 1024, rows=False),
    ("PixelRNN", "mnist"): _pixelrnn(1, 2, 16, 7, 32, rows=False),
    ("GatedPixelCNN", "imagenet32"): _gated_pixelcnn(384, 20, 1024),
}


@pytest.mark.parametrize(("family", "name"), LEARNED)
def test_count(family: str, name: str) -> None:
    assert models.by_name(family).preset(name, device="meta").num_parameters() == LEARNED[family, name]


@pytest.mark.parametrize(("family", "name"), STORED)
def test_count_before_masks(family: str, name: str) -> None:
    model = models.by_name(family).preset(name, device="meta")
    stored = sum(p.numel() for p in model.parameters())
    assert stored == STORED[family, name]
    if name in ("mnist-1x500", "mnist-1x8000"):
        # Degrees are uniform, so each product keeps about half of its weights.
        assert 0.45 < model.num_parameters() / stored < 0.55


def test_every_family_has_one_and_each_is_counted() -> None:
    families = [getattr(models, name) for name in models.__all__]
    found = [
        (cls.__name__, name)
        for cls in families
        if isinstance(cls, type) and issubclass(cls, Model) and cls is not Model
        for name in cls.presets or [""]
    ]
    assert sorted(found) == sorted([*LEARNED, *STORED])
    documented = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in documented.partition("| presets |")[2].split("\n\n")[0].splitlines()
    ]
    listed = [(name.strip("`"), one) for row in rows[2:] for name in row[0].split(", ") for one in row[1].split(", ")]
    assert sorted(listed) == sorted(found)


def test_counts_that_were_published() -> None:
    # As others state them: whole millions, and a figure after the point.
    assert PixelCNNpp.preset("cifar10", device="meta").num_parameters() // 10**6 == 53
    assert round(CharRNN.preset("lstm-2x512", device="meta").num_parameters(), -5) == 3_500_000


def test_an_argument_of_a_preset_may_be_changed() -> None:
    model = NADE.preset("mnist", hidden=20, device="meta")
    assert model.num_parameters() == 2 * 784 * 20 + 20 + 784
    assert model.to_config()["hidden"] == 20
    with pytest.raises(ValueError, match=r"preset: MAF has power, gas"):
        MAF.preset("mnist")
