"""WaveNet: symbols and waveforms, conditions with upsampled features, weight norm, samples that follow it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_density,
    assert_prefix_is_conditioned,
    assert_round_trips,
    assert_sampler_agrees,
    assert_samples_follow,
    randomise,
)
from torch import Tensor

from fastar.distributions import LogisticMixture
from fastar.models import WaveNet
from fastar.sampling import Sampler
from fastar.sampling.instructions import Linear, Loop

T = 4
SYMBOLS: dict[str, Callable[[], WaveNet]] = {
    "plain": lambda: WaveNet(3, 4, 5, [1, 2]),
    "start": lambda: WaveNet(3, 3, 4, 2, 3, start=1, gate=5, head_width=6, residual_scale=0.5**0.5, skip_scale=0.5),
    "separate": lambda: WaveNet(2, 4, 4, [3, 1], input_kernel_size=2, separate=True, bias=False),
    "weight norm": lambda: WaveNet(3, 4, 5, 3, cycle=2, weight_norm=True),
}
LOGISTIC = LogisticMixture(components=2, steps=65536, integer=False, branch=0.0)
WAVEFORMS: dict[str, Callable[[], WaveNet]] = {
    "normal": lambda: WaveNet("normal", 4, 5, [1, 2], input_kernel_size=2),
    "gaussian": lambda: WaveNet({"kind": "gaussian", "components": 2}, 4, 5, [1, 2], weight_norm=True),
    "logistic": lambda: WaveNet(LOGISTIC, 4, 5, [1, 2], 3),
}


def _random(make: Callable[[], WaveNet], size: float = 1.5) -> WaveNet:
    model = randomise(make(), size)
    assert isinstance(model, WaveNet)
    return model


@pytest.fixture(params=list(SYMBOLS))
def model(request: pytest.FixtureRequest) -> WaveNet:
    return _random(SYMBOLS[request.param])


@pytest.fixture(params=list(WAVEFORMS))
def waveform(request: pytest.FixtureRequest) -> WaveNet:
    return _random(WAVEFORMS[request.param], 0.7)


def _x(model: WaveNet, n: int = 5, length: int = T) -> Tensor:
    levels = model.distribution.levels
    return torch.rand(n, length) * 1.4 - 0.9 if levels is None else torch.randint(0, levels, (n, length))


def test_autoregressive(model: WaveNet) -> None:
    dense = model.receptive_field >= T - 1
    assert_autoregressive(model, _x(model), torch.arange(T), dense=dense)


def test_samples_follow_log_prob(model: WaveNet) -> None:
    assert_samples_follow(model, (T,), length=T)


def test_a_known_prefix_is_conditioned_on(model: WaveNet) -> None:
    assert_prefix_is_conditioned(model, (T,), torch.arange(T), 2)


def test_round_trips(model: WaveNet, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)


def test_long_samples_agree(model: WaveNet) -> None:
    for backend in ("auto", "reference"):
        assert_sampler_agrees(model, 3, seed=2, length=40, backend=backend)


def test_waveforms(waveform: WaveNet, tmp_path: Path) -> None:
    assert_autoregressive(waveform, _x(waveform), torch.arange(T))
    assert_round_trips(waveform, _x(waveform), tmp_path)
    result = assert_sampler_agrees(waveform, 4, 2e-4, seed=3, length=20)
    assert result.values.dtype == torch.float32
    if waveform.distribution.is_density:
        assert_density(waveform, first=0, length=2)
        with pytest.raises(ValueError, match="levels: real data have no bits per dim"):
            waveform.nll_bits_per_dim(_x(waveform))
        bits = waveform.nll_bits_per_dim(_x(waveform), levels=65536)
    else:
        bits = waveform.nll_bits_per_dim(_x(waveform))
    assert bits.shape == (5,)


def test_a_sample_sees_its_receptive_field_and_no_further() -> None:
    model = _random(lambda: WaveNet("normal", 4, 5, [1, 2, 4], input_kernel_size=2))
    assert model.receptive_field == 9
    x = _x(model, 1, 14).requires_grad_()
    (grad,) = torch.autograd.grad(model(x)[0, 12].sum(), x)
    assert (grad[0, 12:] == 0).all()
    assert (grad[0, 3:12] != 0).all()
    assert (grad[0, :3] == 0).all()


def test_next_logits_are_shifted_by_one(model: WaveNet) -> None:
    x = _x(model)
    torch.testing.assert_close(model.next_logits(x)[:, :-1], model(x)[:, 1:])


def test_speakers_and_features() -> None:
    speaker = _random(lambda: WaveNet(3, 4, 5, [1, 2], global_cond=3))
    assert_samples_follow(speaker, (T,), length=T, cond=torch.tensor([2]))
    features = _random(lambda: WaveNet(2, 4, 5, [1, 2], local_cond=2, hop=3))
    assert_samples_follow(features, (T,), length=T, cond=torch.randn(1, 2, 2))
    make = lambda: WaveNet(3, 4, 5, [1, 2], local_cond=2, global_cond=2, hop=6, upsample=[2])  # noqa: E731
    both = _random(make, 1.0)
    cond = (torch.tensor([0, 1, 0]), torch.randn(3, 2, 4))
    assert_sampler_agrees(both, 3, seed=1, length=20, cond=cond)
    # A vector's share is computed once, and the features' once per frame.
    program = both.lower()
    assert isinstance(program.code[0], Linear)
    assert isinstance(program.code[1], Loop)
    assert [one.op for one in program.code[2:5]] == ["when", "linear", "end"]
    assert Sampler(both, 3).sample(length=19, seed=1, cond=cond).shape == (3, 19)  # type: ignore[union-attr]
    # The next frame's features change nothing before it.
    x = _x(both, 3, 20)
    changed = cond[1].clone()
    changed[:, :, 3] += 1
    before, after = both(x, cond), both(x, (cond[0], changed))
    assert not torch.equal(before[:, 18:], after[:, 18:])
    torch.testing.assert_close(before[:, :15], after[:, :15])
    with pytest.raises(ValueError, match="cond: expected 4 frames of 6 for 20 samples, got 3"):
        both.sample(3, length=20, cond=(cond[0], cond[1][:, :, :3]))
    with pytest.raises(ValueError, match="cond: this WaveNet needs a pair, the vector and the features, got Tensor"):
        both(x, cond[1])
    with pytest.raises(ValueError, match=r"cond: this WaveNet needs it, features \[5, 2, frames\]"):
        features(_x(features))


def test_weight_norm_is_folded_into_what_a_sampler_packs() -> None:
    model = _random(SYMBOLS["weight norm"])
    program = model.lower()
    conv = model.blocks[1].conv
    torch.testing.assert_close(program.weights["blocks.1.conv.weight"], conv.weight.transpose(1, 2))  # type: ignore[union-attr, operator]


def test_parameters_by_formula() -> None:
    A, R, S, L = 256, 64, 256, 20
    block = 2 * R * 2 * R + 2 * R + R * R + R + S * R + S
    head = S * S + S + A * S + A
    assert WaveNet.preset("nv").num_parameters() == (A + 1) * R + L * block + head
    features = WaveNet(8, 4, 5, [1], 3, local_cond=3, hop=4, upsample=[2, 2], global_cond=2, bias=False)
    upsampling = 2 * (3 * 3 * 4 + 3)
    block = 8 * 4 * 3 + 4 * 4 + 5 * 4 + 8 * 3 + 8 * 2
    assert features.num_parameters() == 9 * 4 + upsampling + block + 5 * 5 + 8 * 5
    mol = WaveNet.preset("ljspeech-mol", device="meta")
    assert mol.distribution.params == 30
    assert mol.rate == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WaveNet(3, 4, 5, 0), r"dilations: expected a positive integer"),
        (lambda: WaveNet(3, 4, 5, [1, 0]), r"dilation: expected a positive integer"),
        (lambda: WaveNet(3, 0, 5, 2), r"residual: expected a positive integer"),
        (lambda: WaveNet(3, 4, 5, 2, start=3), r"start: expected a symbol of 0..2, got 3"),
        (lambda: WaveNet("normal", 4, 5, 2, start=0), r"start: expected a symbol"),
        (lambda: WaveNet("wave", 4, 5, 2), r"head: expected one of"),
        (lambda: WaveNet(LogisticMixture(channels=3), 4, 5, 2), r"head: expected one channel, got 3"),
        (lambda: WaveNet(3, 4, 5, 2, upsample=[2]), r"upsample: there are no features"),
        (lambda: WaveNet(3, 4, 5, 2, local_cond=2, hop=4, upsample=[3]), r"upsample: expected factors of the hop 4"),
        (lambda: WaveNet(3, 4, 5, 2)(torch.zeros(2, 0, dtype=torch.long)), r"x: expected at least one position"),
        (lambda: WaveNet(LOGISTIC, 4, 5, 2)(torch.full((1, 2), 1.5)), r"x: expected numbers from -1.0 to 1.0"),
        (lambda: WaveNet(3, 4, 5, 2).sample(2, length=3, cond=torch.zeros(2, 1)), r"cond: WaveNet takes none"),
        (lambda: WaveNet.preset("mu"), r"preset: WaveNet has nv, nv-large"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
