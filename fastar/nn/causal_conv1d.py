"""CausalConv1d: a convolution along time whose outputs see no later inputs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.ops.causal_conv1d import causal_conv1d, final_state
from fastar.reference import activation as activations


class CausalConv1d(nn.Module):
    """y[b, o, t] = act(b[o] + sum over c and k of W[o, c, k] x[b, c, t - (K - 1 - k) dilation]), on [B, C, T].

    Initialised as `torch.nn.Conv1d`, whose state dict it loads and which loads its own; ``weight[..., -1]`` multiplies
    the newest input. The state is the last ``(K - 1) * dilation`` inputs, [B, C, (K - 1) * dilation].

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output (doubled by ``activation="concat_elu"``).
        kernel_size: taps, K.
        dilation: distance between them.
        groups: channels are split into this many groups that share nothing; in_channels of them: depthwise.
        bias: learn an additive bias.
        activation: none, relu, elu, concat_elu, gelu, gelu_tanh, tanh, sigmoid or silu, fused.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _checks.positive("in_channels", in_channels)
        self.out_channels = _checks.positive("out_channels", out_channels)
        self.kernel_size = _checks.positive("kernel_size", kernel_size)
        self.dilation = _checks.positive("dilation", dilation)
        self.groups = _checks.positive("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups: expected a divisor of {name} = {channels}, got {groups}")
        self.activation = activations.check(activation)
        shape = (out_channels, in_channels // groups, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def reach(self) -> int:
        """How many inputs before the newest an output sees, seen or skipped by the dilation."""
        return (self.kernel_size - 1) * self.dilation

    def reset_parameters(self) -> None:
        """Draw weight and bias as `torch.nn.Conv1d` does, from the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1] * self.kernel_size)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, *, sequence_index: Tensor | None = None) -> Tensor:
        return causal_conv1d(
            x,
            self.weight,
            self.bias,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            sequence_index=sequence_index,
        )

    def init_state(self, batch: int) -> Tensor:
        """The state before any input: zeros."""
        return self.weight.new_zeros(_checks.positive("batch", batch), self.in_channels, self.reach)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the next inputs x [B, C, T], and the state after them: a long input, chunk by chunk."""
        y = causal_conv1d(
            x,
            self.weight,
            self.bias,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            initial_state=state,
        )
        return y, final_state(x, self.reach, state)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output [B, out] of the next input x_t [B, C], and the state after it."""
        _checks.shape("x_t", _checks.tensor("x_t", x_t), ["batch", self.in_channels])
        _checks.shape("state", _checks.tensor("state", state), [x_t.shape[0], self.in_channels, self.reach])
        inputs = torch.cat([state, x_t.unsqueeze(2)], 2)
        z = F.conv1d(inputs[:, :, :: self.dilation], self.weight, self.bias, groups=self.groups).squeeze(2)
        if self.activation == "concat_elu":
            return activations.concat_elu(z, 1), inputs[:, :, 1:]
        return activations.APPLY[self.activation](z), inputs[:, :, 1:]

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"{name}={value}" for name in ("dilation", "groups") if (value := getattr(self, name)) != 1]
        if self.bias is None:
            parts.append("bias=False")
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        return ", ".join(parts)
