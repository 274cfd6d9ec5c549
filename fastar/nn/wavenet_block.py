"""WaveNetBlock: one layer of a WaveNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.nn.causal_conv1d import CausalConv1d
from fastar.ops.wavenet_block import wavenet_block


class WaveNetBlock(nn.Module):
    """One layer of a WaveNet: x [B, R, T] -> (residual [B, R, T], skip [B, S, T]).

        z = conv(x) + local_conv(local_cond) + global_linear(global_cond)      h = tanh(z_f) * sigmoid(z_g)
        residual = (residual_conv(h) + x) * residual_scale      skip = skip_conv(h) * skip_scale + skip_sum

    z_f is the first half of z's channels, z_g the second. Everything is one fused op: the layers below hold parameters
    and are not called. The state is that of the convolution: the last ``(kernel_size - 1) * dilation`` inputs.

    Attributes: `conv`, or where `separate` `filter_conv` and `gate_conv` (`CausalConv1d`); `residual_conv` and
    `skip_conv` (`torch.nn.Conv1d` of kernel size 1); `local_conv` (the same without bias) and `global_linear`
    (`torch.nn.Linear` without bias), None where there are no such features.

    Args:
        residual: channels of x and of the residual, R.
        gate: channels of h, G; the convolution has twice as many.
        skip: channels of the skip output, S.
        kernel_size: taps of the convolution.
        dilation: distance between them.
        local_cond: channels of the local features, 0 for none.
        global_cond: length of the global vector, 0 for none.
        residual_scale: factor of the residual; published WaveNets use 1 or sqrt(0.5).
        skip_scale: factor of this layer's skip output; published WaveNets use 1 or 1 / sqrt(layers).
        separate: filter and gate are two convolutions in the state dict instead of one.
        bias: the convolutions learn an additive bias.
    """

    def __init__(
        self,
        residual: int,
        gate: int,
        skip: int,
        kernel_size: int = 2,
        dilation: int = 1,
        *,
        local_cond: int = 0,
        global_cond: int = 0,
        residual_scale: float = 1.0,
        skip_scale: float = 1.0,
        separate: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.residual = _checks.positive("residual", residual)
        self.gate = _checks.positive("gate", gate)
        self.skip = _checks.positive("skip", skip)
        self.kernel_size = _checks.positive("kernel_size", kernel_size)
        self.dilation = _checks.positive("dilation", dilation)
        for name, size in (("local_cond", local_cond), ("global_cond", global_cond)):
            if size != 0:
                _checks.positive(name, size)
        self.local_cond = local_cond
        self.global_cond = global_cond
        self.residual_scale = float(residual_scale)
        self.skip_scale = float(skip_scale)
        self.separate = separate

        def conv(outputs: int) -> CausalConv1d:
            return CausalConv1d(residual, outputs, kernel_size, dilation, bias=bias, device=device, dtype=dtype)

        if separate:
            self.filter_conv, self.gate_conv = conv(gate), conv(gate)
        else:
            self.conv = conv(2 * gate)
        self.residual_conv = nn.Conv1d(gate, residual, 1, bias=bias, device=device, dtype=dtype)
        self.skip_conv = nn.Conv1d(gate, skip, 1, bias=bias, device=device, dtype=dtype)
        self.local_conv = (
            nn.Conv1d(local_cond, 2 * gate, 1, bias=False, device=device, dtype=dtype) if local_cond else None
        )
        self.global_linear = (
            nn.Linear(global_cond, 2 * gate, bias=False, device=device, dtype=dtype) if global_cond else None
        )

    @property
    def reach(self) -> int:
        """How many inputs before the newest an output sees, seen or skipped by the dilation."""
        return (self.kernel_size - 1) * self.dilation

    def gate_weight(self) -> Tensor:
        """The convolution's weight [2 G, R, K]: the filter's rows, then the gate's."""
        return torch.cat([self.filter_conv.weight, self.gate_conv.weight]) if self.separate else self.conv.weight

    def gate_bias(self) -> Tensor | None:
        """The convolution's bias [2 G], in the same order."""
        if not self.separate:
            return self.conv.bias
        first, second = self.filter_conv.bias, self.gate_conv.bias
        return None if first is None or second is None else torch.cat([first, second])

    def conditioning(self, local_cond: Tensor | None, global_cond: Tensor | None) -> Tensor | None:
        """What the features add to z, [B, 2 G, frames], at the rate of the local ones."""
        for name, given, layer in (
            ("local_cond", local_cond, self.local_conv),
            ("global_cond", global_cond, self.global_linear),
        ):
            if (given is None) != (layer is None):
                raise ValueError(f"{name}: expected {'none' if layer is None else 'a tensor'}, as the block was made")
        total = None
        if local_cond is not None and self.local_conv is not None:
            _checks.shape("local_cond", _checks.tensor("local_cond", local_cond), ["batch", self.local_cond, "frames"])
            total = self.local_conv(local_cond)
        if global_cond is not None and self.global_linear is not None:
            _checks.shape("global_cond", _checks.tensor("global_cond", global_cond), ["batch", self.global_cond])
            whole = self.global_linear(global_cond).unsqueeze(2)
            total = whole if total is None else total + whole
        return total

    def forward(
        self,
        x: Tensor,
        *,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        hop: int | None = None,
        skip_sum: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(residual, skip). `local_cond` [B, C, frames] holds `hop` times per frame, T / frames where that is None."""
        conditioning = self.conditioning(local_cond, global_cond)
        if local_cond is None:
            if hop is not None:
                raise ValueError(f"hop: expected None without local features, got {hop}")
            hop = max(x.shape[2], 1)
        elif hop is None:
            frames = local_cond.shape[2]
            if frames == 0 or x.shape[2] % frames:
                raise ValueError(
                    f"local_cond: expected a number of frames that divides the {x.shape[2]} times, or a hop,"
                    f" got {frames} frames"
                )
            hop = max(x.shape[2] // frames, 1)
        return wavenet_block(
            x,
            self.gate_weight(),
            self.gate_bias(),
            self.residual_conv.weight.squeeze(2),
            self.residual_conv.bias,
            self.skip_conv.weight.squeeze(2),
            self.skip_conv.bias,
            dilation=self.dilation,
            conditioning=conditioning,
            hop=hop,
            skip_sum=skip_sum,
            residual_scale=self.residual_scale,
            skip_scale=self.skip_scale,
        )

    def init_state(self, batch: int) -> Tensor:
        """The state before any input: zeros."""
        return self.residual_conv.weight.new_zeros(_checks.positive("batch", batch), self.residual, self.reach)

    def step(
        self,
        x_t: Tensor,
        state: Tensor,
        *,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        skip_sum: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((residual [B, R], skip [B, S]), state after it) of the next input x_t [B, R].

        `local_cond` [B, C] is the frame that this time lies in, `skip_sum` [B, S] what earlier layers left.
        """
        _checks.shape("x_t", _checks.tensor("x_t", x_t), ["batch", self.residual])
        _checks.shape("state", _checks.tensor("state", state), [x_t.shape[0], self.residual, self.reach])
        inputs = torch.cat([state, x_t.unsqueeze(2)], 2)
        weight, bias = self.gate_weight(), self.gate_bias()
        z = torch.einsum("ock,bck->bo", weight, inputs[:, :, :: self.dilation])
        if bias is not None:
            z = z + bias
        frame = None if local_cond is None else local_cond.unsqueeze(2)
        conditioning = self.conditioning(frame, global_cond)
        if conditioning is not None:
            z = z + conditioning.squeeze(2)
        z_f, z_g = z.chunk(2, 1)
        h = torch.tanh(z_f) * torch.sigmoid(z_g)
        residual = (_mixed(h, self.residual_conv) + x_t) * self.residual_scale
        skip = _mixed(h, self.skip_conv) * self.skip_scale
        return (residual, skip if skip_sum is None else skip + skip_sum), inputs[:, :, 1:]

    def extra_repr(self) -> str:
        parts = [f"{self.residual}, {self.gate}, {self.skip}, kernel_size={self.kernel_size}"]
        parts += [f"dilation={self.dilation}"] if self.dilation != 1 else []
        parts += [f"{name}={value}" for name in ("residual_scale", "skip_scale") if (value := getattr(self, name)) != 1]
        return ", ".join(parts)


def _mixed(h: Tensor, layer: nn.Conv1d) -> Tensor:
    return torch.nn.functional.linear(h, layer.weight.squeeze(2), layer.bias)
