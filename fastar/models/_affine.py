"""What flows are stacked of: affine autoregressive transforms on masked networks, and batch norm as a flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar.models import _masks
from fastar.models._incremental import Incremental
from fastar.models.made import MaskedNetwork
from fastar.sampling import Builder
from fastar.sampling.dimensions import Schedule
from fastar.sampling.index import Ref
from fastar.sampling.instructions import Elementwise

# log s(u) by name. What the others add to a plain exponential keeps a scale away from 0, or from infinity.
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda u: u,
    "exp_clamped": lambda u: u.clamp(-5, 3),
    "softplus": lambda u: torch.log(F.softplus(u) + 1e-3),
    "sigmoid": lambda u: torch.log(torch.sigmoid(u + 2) + 1e-3),
    "exp_soft": lambda u: u / (1 + (u / math.log(1e-3)).abs()),
}


def emit_log_scale(b: Builder, scale: str, u: Ref, path: str) -> Ref:
    """log s(u) in a step program: what `SCALES` says, where u itself is not it in scratch of its own."""
    if scale == "exp":
        return u
    y = b.scratch(f"{path}.log_scale", 1).at()
    if scale == "exp_clamped":
        b.add(Elementwise(y, "clamp", u, alpha=-5.0, beta=3.0))
    elif scale in ("softplus", "sigmoid"):
        b.add(Elementwise(y, scale, u, beta=2.0 if scale == "sigmoid" else 0.0))
        b.add(Elementwise(y, "log", y, beta=1e-3))
    else:
        # u / (1 + c |u|), the division as exp(-log(.)).
        negative = b.scratch(f"{path}.negative", 1).at()
        b.add(Elementwise(y, "relu", u), Elementwise(negative, "relu", u, alpha=-1.0))
        b.add(Elementwise(y, "add", y, negative), Elementwise(y, "log", y, alpha=-1 / math.log(1e-3), beta=1.0))
        b.add(Elementwise(y, "exp", y, alpha=-1.0), Elementwise(y, "mul", y, u))
    return y


class AffineLayer(nn.Module):
    """One transform: a masked network that gives a shift and a scale to each dimension from those before it.

    `parallel` maps the side that the network reads to the other in one pass; `sequential` is its inverse. `scales`
    says whether the parallel direction multiplies by s and adds m, or takes m away and divides.
    """

    def __init__(
        self,
        hidden: Sequence[int],
        order: Tensor,
        degrees: Sequence[Tensor],
        *,
        scale: str,
        scales: bool,
        activation: str,
        residual: bool,
        cond_dim: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.order, self.scale, self.scales, self.cond_dim = order, scale, scales, cond_dim
        self.dim = len(order)
        self.network = MaskedNetwork(
            self.dim + cond_dim,
            hidden,
            2 * self.dim,
            activation=activation,
            residual=residual,
            device=device,
            dtype=dtype,
        )
        self.network.connect(_masks.by_degrees(order, degrees, 2, "feature", cond_dim))

    def parallel(self, known: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The other side of `known` [B, D], and the logarithm [B] of the Jacobian's determinant."""
        m, log_s = self._shift_and_scale(self.network(known if cond is None else torch.cat([known, cond], 1)))
        return self._affine(known, m, log_s, self.scales), (log_s if self.scales else -log_s).sum(1)

    def sequential(self, other: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inverse of `parallel`.

        Without gradients one pass in all, dimension by dimension. With gradients D passes: after k of them the first k
        dimensions are right, and so are their derivatives.
        """
        if torch.is_grad_enabled() and (other.requires_grad or any(p.requires_grad for p in self.parameters())):
            known = torch.zeros_like(other)
            for _ in range(self.dim):
                m, log_s = self._shift_and_scale(self.network(known if cond is None else torch.cat([known, cond], 1)))
                known = self._affine(other, m, log_s, not self.scales)
            return known, (-log_s if self.scales else log_s).sum(1)
        return self._incremental(other, cond)

    def schedule(self, path: str = "") -> Schedule:
        """The network's units by the pass of each."""
        return Schedule(self.network, 2, self.order, cond_dim=self.cond_dim, path=path)

    @torch.no_grad()
    def _incremental(self, other: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        net = Incremental(self.schedule(), len(other), cond)
        known, total = torch.empty_like(other), other.new_zeros(len(other))
        for t, i in enumerate(self.order.tolist()):
            m, u = net.params(t).unbind(1)
            log_s = SCALES[self.scale](u)
            known[:, i] = self._affine(other[:, i], m, log_s, not self.scales)
            total = total + log_s
            net.store(t, known[:, i])
        return known, -total if self.scales else total

    def _shift_and_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        m, u = params.unflatten(1, (self.dim, 2)).unbind(2)
        return m, SCALES[self.scale](u)

    @staticmethod
    def _affine(x: Tensor, m: Tensor, log_s: Tensor, scales: bool) -> Tensor:
        return x * torch.exp(log_s) + m if scales else (x - m) * torch.exp(-log_s)


class BatchNorm(nn.Module):
    """Batch norm as a flow, from the data's side to the noise's: (x - mean) / sqrt(var + eps) * exp(g) + b."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.log_gain = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(dim, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise's side, and log-determinant [B]; of the batch's own moments while training."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            if len(x) < 2:
                raise ValueError(f"x: batch norm needs at least 2 rows while training, got {len(x)}")
            mean, var = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        log_scale = self.log_gain - 0.5 * torch.log(var + self.eps)
        return (x - mean) * torch.exp(log_scale) + self.bias, log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Data's side by the running moments, and log-determinant [B]."""
        if self.training:
            raise ValueError("training: batch norm is inverted by its running moments only; call eval() first")
        shift, log_scale = self.constants()
        return y * torch.exp(log_scale) + shift, log_scale.sum().expand(len(y))

    def constants(self) -> tuple[Tensor, Tensor]:
        """Shift and log-scale [D] of the inverse."""
        log_scale = 0.5 * torch.log(self.running_var + self.eps) - self.log_gain
        return self.running_mean - self.bias * torch.exp(log_scale), log_scale
