"""WaveNet: sound sample by sample, by dilated causal convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as with_weight_norm

from fastar import _checks
from fastar.distributions import Categorical, Distribution, make
from fastar.models import _condition
from fastar.models.model import Model
from fastar.nn import CausalConv1d, WaveNetBlock
from fastar.sampling import Builder, Program, fuse
from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Gather, Linear, Store
from fastar.sampling.layers_wavenet import block
from fastar.sampling.lower import Signal, Step


class WaveNet(Model):
    """p(x_t | x_<t) by gated convolutions over exponentially growing stretches of the past.

    The samples before t enter by an embedding (symbols: mu-law levels) or a convolution (a waveform in [-1, 1]); blocks
    add what they find to a sum, of which relu, 1 x 1, relu, 1 x 1 make the parameters.

    Args:
        head: number of symbols, or a distribution, its name or its configuration. One of levels takes symbols, one of
            real numbers ("normal", "gaussian", "laplace", "logistic" with ``integer=False``) a waveform.
        residual: channels of the stream from block to block.
        skip: channels of the sum.
        dilations: of every block, or the number of blocks, whose dilations are then 1, 2, 4, .. 2 ** (cycle - 1) again
            and again.
        kernel_size: taps of a block's convolution.
        gate: channels of a block's gate; `residual` unless given.
        head_width: channels of the last hidden layer; `skip` unless given.
        cycle: see `dilations`.
        input_kernel_size: samples that enter at once.
        start: the symbol that stands before the first; a learned one unless given. A waveform begins with silence.
        global_cond: length of a vector to condition on, or number of classes (speakers).
        local_cond: channels of features [B, channels, frames] to condition on.
        hop: samples per frame.
        upsample: factors by which transposed convolutions raise the frames' rate, each learned; what is then left of
            `hop` repeats the frames.
        residual_scale, skip_scale: factors of a block's two outputs.
        separate: a convolution for the filter and one for the gate, instead of one with both halves.
        weight_norm: learn every convolution's direction and length; a sampler takes the product of the two.
        bias: the convolutions learn an additive bias.

    x [B, T] int, or float in [-1, 1]; ``model(x)`` [B, T, params]. Samples take a `length`.
    """

    data_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nv": {"head": 256, "residual": 64, "skip": 256, "dilations": 20, "gate": 64},
        "nv-large": {"head": 256, "residual": 128, "skip": 256, "dilations": 30, "gate": 128},
        "ljspeech-mol": {
            "head": {"kind": "logistic", "components": 10, "steps": 65536, "integer": False, "branch": 0.0},
            "residual": 128,
            "skip": 128,
            "dilations": 24,
            "kernel_size": 3,
            "cycle": 6,
            "local_cond": 80,
            "hop": 256,
            "upsample": [4, 4, 4, 4],
            "residual_scale": 0.5**0.5,
            "weight_norm": True,
        },
    }

    def __init__(
        self,
        head: int | Distribution | str | Mapping[str, Any],
        residual: int,
        skip: int,
        dilations: int | Sequence[int],
        kernel_size: int = 2,
        *,
        gate: int | None = None,
        head_width: int | None = None,
        cycle: int = 10,
        input_kernel_size: int = 1,
        start: int | None = None,
        global_cond: int = 0,
        local_cond: int = 0,
        hop: int = 1,
        upsample: Sequence[int] = (),
        residual_scale: float = 1.0,
        skip_scale: float = 1.0,
        separate: bool = False,
        weight_norm: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        law = Categorical(head) if isinstance(head, int) else make(head)
        super().__init__(
            head=law.to_config(),
            residual=residual,
            skip=skip,
            dilations=dilations if isinstance(dilations, int) else list(dilations),
            kernel_size=kernel_size,
            gate=gate,
            head_width=head_width,
            cycle=cycle,
            input_kernel_size=input_kernel_size,
            start=start,
            global_cond=global_cond,
            local_cond=local_cond,
            hop=hop,
            upsample=list(upsample),
            residual_scale=residual_scale,
            skip_scale=skip_scale,
            separate=separate,
            weight_norm=weight_norm,
            bias=bias,
        )
        if law.head.channels != 1:
            raise ValueError(f"head: expected one channel, got {law.head.channels}")
        for name, size in (("skip", skip), ("cycle", cycle), ("input_kernel_size", input_kernel_size), ("hop", hop)):
            _checks.positive(name, size)
        for name, size in (("global_cond", global_cond), ("local_cond", local_cond)):
            if size != 0:
                _checks.positive(name, size)
        self.distribution = law
        self.data_shape = ("T",)
        levels = law.levels
        if start is not None and (levels is None or isinstance(start, bool) or not 0 <= start < levels):
            raise ValueError(f"start: expected a symbol of 0..{(levels or 0) - 1}, got {start!r}")
        self.start = levels if start is None else start
        self.residual = _checks.positive("residual", residual)
        self.global_cond, self.local_cond, self.hop = global_cond, local_cond, hop
        self.rate = _rate(hop, upsample, local_cond)
        if isinstance(dilations, int):
            _checks.positive("dilations", dilations)
        each = [2 ** (i % cycle) for i in range(dilations)] if isinstance(dilations, int) else list(dilations)
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        wide = skip if head_width is None else _checks.positive("head_width", head_width)
        if levels is None:
            self.enter: CausalConv1d | nn.ModuleList = CausalConv1d(1, residual, input_kernel_size, **placed)
        else:
            rows = levels + (start is None)
            self.enter = nn.ModuleList(nn.Embedding(rows, residual, **placed) for _ in range(input_kernel_size))
        self.upsampling = nn.Sequential(*(_Upsample(local_cond, factor, placed) for factor in upsample))
        self.blocks = nn.ModuleList(
            WaveNetBlock(
                residual,
                residual if gate is None else gate,
                skip,
                kernel_size,
                dilation,
                local_cond=local_cond,
                global_cond=global_cond,
                residual_scale=residual_scale,
                skip_scale=skip_scale,
                separate=separate,
                bias=bias,
                **placed,
            )
            for dilation in each
        )
        self.post = nn.Conv1d(skip, wide, 1, bias=bias, **placed)
        self.last = nn.Conv1d(wide, law.params, 1, bias=bias, **placed)
        if weight_norm:
            convolutions = [
                one for one in self.modules() if isinstance(one, nn.Conv1d | nn.ConvTranspose1d | CausalConv1d)
            ]
            for one in convolutions:
                with_weight_norm(one)

    @property
    def receptive_field(self) -> int:
        """How many earlier samples a sample depends on."""
        taps = len(self.enter) if isinstance(self.enter, nn.ModuleList) else self.enter.kernel_size
        return taps + sum(one.reach for one in self.blocks if isinstance(one, WaveNetBlock))

    def check(self, x: Tensor, cond: Any = None) -> None:
        _checks.shape("x", _checks.tensor("x", x), ["B", "T"])
        self.distribution.check(x)
        if x.shape[1] == 0:
            raise ValueError("x: expected at least one position, got 0")

    def forward(self, x: Tensor, cond: Any = None) -> Tensor:
        self.check(x, cond)
        return self._params(x[:, :-1], cond, x.shape[1])

    def next_logits(self, x: Tensor, cond: Any = None) -> Tensor:
        """Entry t parametrises x_{t+1}: [B, T, params]; features are those of the predicted samples."""
        self.check(x, cond)
        return self._params(x, cond, x.shape[1] + 1)[:, 1:]

    def _params(self, before: Tensor, cond: Any, length: int) -> Tensor:
        whole, local = self._conditions(cond, len(before), length)
        skip: Tensor | None = None
        y = self._entered(before, length)
        given: dict[str, Any] = {"global_cond": None if whole is None else whole.to(y)}
        if local is not None:
            given |= {"local_cond": self._features(local.to(y), length), "hop": self.rate}
        for one in self.blocks:
            y, skip = one(y, skip_sum=skip, **given)
        assert skip is not None
        params: Tensor = self.last(F.relu(self.post(F.relu(skip))))
        return params.transpose(1, 2)

    def _entered(self, before: Tensor, length: int) -> Tensor:
        # [B, residual, T] of what stands before each of the T samples.
        if not isinstance(self.enter, nn.ModuleList):
            y: Tensor = self.enter(F.pad(before.to(self.dtype), (1, 0))[:, None])
            return y
        assert self.start is not None
        taps = len(self.enter)
        padded = F.pad(before.long(), (taps, 0), value=self.start)
        parts = [table(padded[:, k : k + length]) for k, table in enumerate(self.enter)]
        return sum(parts[1:], parts[0]).transpose(1, 2)  # type: ignore[no-any-return]

    def _features(self, local: Tensor, length: int) -> Tensor:
        # At the blocks' rate, as many frames as the samples take.
        frames: Tensor = self.upsampling(local[:, :, : -(-length // self.hop)])
        return frames[:, :, : -(-length // self.rate)]

    def _conditions(self, cond: Any, rows: int, length: int) -> tuple[Tensor | None, Tensor | None]:
        owner = f"this {type(self).__name__}"
        whole, local = _condition.pair(owner, cond, bool(self.global_cond), bool(self.local_cond), "features")
        if self.local_cond:
            if local is None:
                raise ValueError(f"cond: {owner} needs it, features [{rows}, {self.local_cond}, frames]")
            _checks.dtype("cond", _checks.tensor("cond", local), _checks.FLOATS)
            _checks.shape("cond", local, [rows, self.local_cond, "frames"])
            if local.shape[2] * self.hop < length:
                raise ValueError(
                    f"cond: expected {-(-length // self.hop)} frames of {self.hop} for {length} samples,"
                    f" got {local.shape[2]}"
                )
        return _condition.vector(owner, whole, self.global_cond, rows), local

    def lower(self) -> Program:
        law = self.distribution
        b = Builder("WaveNet", law.value, None)
        blocks = [one for one in self.blocks if isinstance(one, WaveNetBlock)]
        widths = [2 * one.gate for one in blocks]
        conditions, whole = None, None
        if self.global_cond:
            # A vector's share is the same at every sample, so it is computed before the first.
            whole = conditions = b.state("whole", sum(widths)).at()
            rows = torch.cat([one.global_linear.weight for one in blocks if one.global_linear is not None])
            b.add(Linear(whole, b.input("global_cond", self.global_cond).at(), b.weight("global.weight", rows)))
        with b.loop("t", None) as t:
            if self.local_cond:
                conditions = b.state("frame", sum(widths)).at()
                rows = torch.cat([one.local_conv.weight for one in blocks if one.local_conv is not None]).squeeze(2)
                frame = b.input("local_cond", 0, self.local_cond).at(t // self.rate)
                with b.when(t, 0, None, self.rate):
                    b.add(Linear(conditions, frame, b.weight("local.weight", rows), add=whole))
            step = Step(b, t)
            x, skip = self._lower_input(step, t), None
            for number, one in enumerate(blocks):
                step.path = f"blocks.{number}"
                share = None if conditions is None else conditions.channels(sum(widths[:number]), widths[number])
                x, skip = block(one, x, step, share, skip)
            step.path = ""
            assert skip is not None
            y = step.elementwise("relu", Signal(skip, last=False))
            y = step.elementwise("relu", step.child("post", self.post, y))
            b.add(Draw(law.head, t, step.child("last", self.last, y).ref))
        return fuse(b.build())

    def _lower_input(self, step: Step, t: Index) -> Any:
        b = step.builder
        out = step.scratch(self.residual)
        if not isinstance(self.enter, nn.ModuleList):
            x = b.scratch("x", 1).at()
            b.add(Store(x, t - 1))
            return step.child("enter", self.enter, Signal(x, last=False)).ref
        taps = len(self.enter)
        for k, table in enumerate(self.enter):
            name = b.weight(f"enter.{k}", table.weight)  # type: ignore[arg-type]
            b.add(Gather(out, name, t - (taps - k), first=self.start, add=out if k else None))
        return out

    def condition(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        """The program's inputs: the vector, and the features at the blocks' rate, a row for each frame."""
        longest = 1 if length is None else int(torch.as_tensor(length).max())
        whole, local = self._conditions(cond, n, longest)
        inputs = {} if whole is None else {"global_cond": whole.detach().float()}
        if local is not None:
            frames = self._features(local.to(self.device, self.dtype), longest)
            inputs["local_cond"] = frames.detach().transpose(1, 2).float().contiguous()
        return inputs


class _Upsample(nn.Module):
    # A transposed convolution of two steps' width, cropped to whole steps.
    def __init__(self, channels: int, factor: int, placed: dict[str, Any]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.ConvTranspose1d(channels, channels, 2 * factor, factor, **placed)

    def forward(self, x: Tensor) -> Tensor:
        crop = self.factor // 2
        return self.conv(x)[:, :, crop : crop + x.shape[2] * self.factor]  # type: ignore[no-any-return]


def _rate(hop: int, upsample: Sequence[int], local_cond: int) -> int:
    # Samples per frame after upsampling.
    if upsample and not local_cond:
        raise ValueError("upsample: there are no features to upsample; give local_cond")
    rate = hop
    for factor in upsample:
        if rate % _checks.positive("upsample", factor):
            raise ValueError(f"upsample: expected factors of the hop {hop}, got {list(upsample)}")
        rate //= factor
    return rate
