"""Two projects' WaveNets, written down once more from their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import convert

SYMBOLS, R, G, S, A, DILATIONS = 7, 4, 5, 6, 3, [1, 2, 4, 1]


class Saved:
    """A state dict that grows, some of it by weight norm."""

    def __init__(self, normed: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.whole: dict[str, Tensor] = {}
        self.normed = normed
        self.generator = torch.Generator().manual_seed(2)

    def normal(self, *shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=self.generator)

    def conv(self, path: str, out: int, inputs: int, taps: int, bias: bool) -> None:
        weight = self.normal(out, inputs, taps)
        if self.normed:
            g = 1 + self.normal(out, 1, 1)
            self.tensors |= {f"{path}.weight_g": g, f"{path}.weight_v": weight}
            weight = g * weight / weight.flatten(1).norm(dim=1)[:, None, None]
        else:
            self.tensors[f"{path}.weight"] = weight
        self.whole[f"{path}.weight"] = weight
        if bias:
            self.tensors[f"{path}.bias"] = self.whole[f"{path}.bias"] = self.normal(out)

    def apply(self, path: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = self.whole[f"{path}.weight"]
        x = F.pad(x, ((weight.shape[2] - 1) * dilation, 0))
        return F.conv1d(x, weight, self.whole.get(f"{path}.bias"), dilation=dilation)


def vocoder(normed: bool, local: int, speakers: int, enter: int, out: int) -> Saved:
    saved = Saved(normed)
    saved.conv("first_conv", R, enter, 1, True)
    for number in range(len(DILATIONS)):
        path = f"conv_layers.{number}"
        saved.conv(f"{path}.conv", 2 * G, R, 3, True)
        if local:
            saved.conv(f"{path}.conv1x1c", 2 * G, local, 1, False)
        if speakers:
            saved.conv(f"{path}.conv1x1g", 2 * G, 8, 1, False)
        saved.conv(f"{path}.conv1x1_out", R, G, 1, True)
        saved.conv(f"{path}.conv1x1_skip", S, G, 1, True)
    saved.conv("last_conv_layers.1", S, S, 1, True)
    saved.conv("last_conv_layers.3", out, S, 1, True)
    if speakers:
        saved.tensors["embed_speakers.weight"] = saved.normal(speakers, 8)
    return saved


def vocoded(saved: Saved, x: Tensor, features: Tensor | None = None, speaker: Tensor | None = None) -> Tensor:
    y, skips = saved.apply("first_conv", x), torch.zeros(())
    for number, dilation in enumerate(DILATIONS):
        path = f"conv_layers.{number}"
        z = saved.apply(f"{path}.conv", y, dilation)
        if features is not None:
            z = z + saved.apply(f"{path}.conv1x1c", features)
        if speaker is not None:
            z = z + saved.apply(f"{path}.conv1x1g", saved.tensors["embed_speakers.weight"][speaker][:, :, None])
        h = z[:, :G].tanh() * z[:, G:].sigmoid()
        skips = skips + saved.apply(f"{path}.conv1x1_skip", h)
        y = (saved.apply(f"{path}.conv1x1_out", h) + y) * 0.5**0.5
    skips = F.relu(skips * len(DILATIONS) ** -0.5)
    return saved.apply("last_conv_layers.3", F.relu(saved.apply("last_conv_layers.1", skips))).transpose(1, 2)


@pytest.mark.parametrize("normed", [True, False])
def test_wavenet_vocoder_on_symbols(normed: bool) -> None:
    saved = vocoder(normed, 0, 0, SYMBOLS, SYMBOLS)
    model = convert.wavenet(saved.tensors, DILATIONS, start=3)
    x = torch.randint(SYMBOLS, (2, 11))
    before = F.one_hot(torch.cat([torch.full((2, 1), 3), x], 1), SYMBOLS).float().transpose(1, 2)
    torch.testing.assert_close(model(x), vocoded(saved, before)[:, :-1], rtol=1e-4, atol=1e-5)
    unstarted = convert.wavenet(saved.tensors, DILATIONS)
    before[:, :, 0] = 0
    torch.testing.assert_close(unstarted(x), vocoded(saved, before)[:, :-1], rtol=1e-4, atol=1e-5)
    drawn = unstarted.sample(2, length=9, seed=0, return_info=True)
    torch.testing.assert_close(drawn.log_prob.float(), unstarted.log_prob(drawn.values), rtol=1e-4, atol=1e-4)


def test_wavenet_vocoder_on_a_waveform_with_features_and_speakers() -> None:
    saved = vocoder(True, 2, 3, 1, 6)
    saved.tensors["upsample_net.conv.weight"] = torch.ones(1)
    head = {"kind": "logistic", "components": 2, "steps": 65536, "integer": False}
    model = convert.wavenet(saved.tensors, DILATIONS, head, ignore=["upsample_net."])
    x, features, speaker = torch.rand(2, 10) * 2 - 1, torch.randn(2, 2, 10), torch.tensor([2, 0])
    before = F.pad(x, (1, -1))[:, None]
    expected = vocoded(saved, before, features, speaker)
    torch.testing.assert_close(model(x, (speaker, features)), expected, rtol=1e-4, atol=1e-5)


def halved(saved: Saved, x: Tensor) -> Tensor:
    y, skip = saved.apply("start_conv", x), torch.zeros(())
    for number, dilation in enumerate(DILATIONS):
        f, g = (saved.apply(f"{name}.{number}", y, dilation) for name in ("filter_convs", "gate_convs"))
        h = f.tanh() * g.sigmoid()
        skip = skip + saved.apply(f"skip_convs.{number}", h)
        y = y + saved.apply(f"residual_convs.{number}", h)
    return saved.apply("end_conv_2", F.relu(saved.apply("end_conv_1", F.relu(skip)))).transpose(1, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_pytorch_wavenet(bias: bool) -> None:
    saved = Saved(normed=False)
    saved.conv("start_conv", R, SYMBOLS, 1, bias)
    for number in range(len(DILATIONS)):
        for name, out, inputs, taps in (
            ("filter_convs", G, R, 2),
            ("gate_convs", G, R, 2),
            ("residual_convs", R, G, 1),
            ("skip_convs", S, G, 1),
        ):
            saved.conv(f"{name}.{number}", out, inputs, taps, bias)
    saved.conv("end_conv_1", A, S, 1, True)
    saved.conv("end_conv_2", SYMBOLS, A, 1, True)
    x = torch.randint(SYMBOLS, (2, 11))
    before = F.one_hot(F.pad(x, (1, -1)), SYMBOLS).float().transpose(1, 2)
    model = convert.wavenet(saved.tensors, DILATIONS, start=0)
    torch.testing.assert_close(model(x), halved(saved, before), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    tensors = vocoder(True, 0, 0, SYMBOLS, SYMBOLS).tensors
    with pytest.raises(ValueError, match="dilations: expected one for each of 4 layers, got 3"):
        convert.wavenet(tensors, DILATIONS[:3])
    with pytest.raises(ValueError, match="head: expected one of 7 channels entering, got one of a waveform"):
        convert.wavenet(tensors, DILATIONS, "normal")
    with pytest.raises(ValueError, match=r"no use for upsample_net.conv.weight; name them in `ignore`"):
        convert.wavenet({**tensors, "upsample_net.conv.weight": torch.ones(1)}, DILATIONS)
    with pytest.raises(ValueError, match=r"expected layers called conv_layers.0 or filter_convs.0, got none"):
        convert.wavenet({"wte.weight": torch.ones(2, 2)}, [])
