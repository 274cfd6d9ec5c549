"""MAF and IAF: stacks of affine autoregressive transforms between data x and normal noise z.

MAF  x_i = z_i s(u_i) + m_i   with m_i, u_i of x_before(i):  z of x in one pass, x of z dimension by dimension
IAF  x_i = z_i s(u_i) + m_i   with m_i, u_i of z_before(i):  the other way round
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Normal
from fastar.models import _condition, _masks, _order
from fastar.models._affine import SCALES, AffineLayer, BatchNorm, emit_log_scale
from fastar.models.model import Model
from fastar.sampling import Builder, Head, Program, Value
from fastar.sampling.index import Ref
from fastar.sampling.instructions import Draw, Elementwise, Emit, Linear


class _Flow(Model):
    # Whether the networks read the data's side or the noise's.
    reads_data: ClassVar[bool]

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int],
        layers: int,
        scale: str = "exp",
        *,
        inverted: bool = False,
        orders: str | Sequence[Sequence[int]] = "reverse",
        batch_norm: bool = False,
        cond_dim: int = 0,
        activation: str = "relu",
        degrees: str | Sequence[Sequence[int]] = "cyclic",
        residual: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [hidden] if isinstance(hidden, int) else list(hidden)
        super().__init__(
            dim=dim,
            hidden=sizes,
            layers=layers,
            scale=scale,
            inverted=inverted,
            orders=orders if isinstance(orders, str) else [torch.as_tensor(one).tolist() for one in orders],
            batch_norm=batch_norm,
            cond_dim=cond_dim,
            activation=activation,
            degrees=degrees if isinstance(degrees, str) else [torch.as_tensor(one).tolist() for one in degrees],
            residual=residual,
            seed=seed,
        )
        self.dim = _checks.positive("dim", dim)
        self.distribution = Normal()
        self.data_shape = (dim,)
        if scale not in SCALES:
            raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
        self.scale, self.inverted = scale, bool(inverted)
        self.cond_dim = cond_dim if cond_dim == 0 else _checks.positive("cond_dim", cond_dim)
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(
            AffineLayer(
                sizes,
                order,
                _masks.hidden_degrees(degrees, sizes, dim, residual, generator),
                scale=scale,
                scales=self.reads_data == self.inverted,
                activation=activation,
                residual=residual,
                cond_dim=cond_dim,
                device=device,
                dtype=dtype,
            )
            for order in self._orders(orders, _checks.positive("layers", layers), generator)
        )
        norms = [BatchNorm(dim, device=device, dtype=dtype) for _ in range(layers if batch_norm else 0)]
        self.norms = nn.ModuleList(norms)

    def _orders(self, orders: str | Sequence[Sequence[int]], layers: int, generator: torch.Generator) -> list[Tensor]:
        natural = torch.arange(self.dim)
        if orders == "reverse":
            return [natural.flip(0) if k % 2 else natural for k in range(layers)]
        if orders == "random":
            return [natural, *(torch.randperm(self.dim, generator=generator) for _ in range(layers - 1))]
        if isinstance(orders, str):
            raise ValueError(f"orders: expected reverse, random or a permutation per layer, got {orders!r}")
        if len(orders) != layers:
            raise ValueError(f"orders: expected a permutation for each of {layers} layers, got {len(orders)}")
        return [_order.permutation(one, self.dim) for one in orders]

    def _condition(self, cond: Any, rows: int) -> Tensor | None:
        given = _condition.vector(f"this {type(self).__name__}", cond, self.cond_dim, rows)
        return None if given is None else given.to(self.device, self.dtype)

    def check(self, x: Tensor, cond: Any = None) -> None:
        _checks.shape("x", _checks.tensor("x", x), ["B", self.dim])
        self.distribution.check(x)
        if x.dtype != self.dtype:
            raise TypeError(f"x: expected the model's dtype, {self.dtype}, got {x.dtype}".replace("torch.", ""))

    def transform(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Noise z [B, D] of data x, and log |dz/dx| [B]; differentiable."""
        self.check(x, cond)
        given, total = self._condition(cond, len(x)), x.new_zeros(len(x))
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, AffineLayer)
            x, log_det = layer.parallel(x, given) if self.reads_data else layer.sequential(x, given)
            total = total + log_det
            if len(self.norms):
                x, log_det = self.norms[number](x)
                total = total + log_det
        return x, total

    def inverse(self, z: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Data x [B, D] of noise z, and log |dx/dz| [B]; differentiable."""
        self.check(z, cond)
        given, total = self._condition(cond, len(z)), z.new_zeros(len(z))
        for number in reversed(range(len(self.layers))):
            layer = self.layers[number]
            assert isinstance(layer, AffineLayer)
            if len(self.norms):
                norm = self.norms[number]
                assert isinstance(norm, BatchNorm)
                z, log_det = norm.inverse(z)
                total = total + log_det
            z, log_det = layer.sequential(z, given) if self.reads_data else layer.parallel(z, given)
            total = total + log_det
        return z, total

    def forward(self, x: Tensor, cond: Any = None) -> Tensor:
        """The noise of x."""
        return self.transform(x, cond)[0]

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """log N(z; 0, 1) + log |dz/dx| [B]."""
        z, log_det = self.transform(x, cond)
        return log_det - 0.5 * (z * z).sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def lower(self) -> Program:
        """All layers in one program: the noise of dimension i is drawn at position i, the layers follow."""
        if self.training and len(self.norms):
            raise ValueError("training: batch norm is inverted by its running moments only; call eval() first")
        D = self.dim
        b = Builder(type(self).__name__, Value("float", 1), D)
        cond = b.input("cond", self.cond_dim).at() if self.cond_dim else None
        b.weight("base", torch.zeros(2, dtype=self.dtype, device=self.device))
        base, z = b.state("law of the noise", 2, init="base").at(), b.state("z", D).at()
        with b.loop("t", D) as t:
            b.add(Draw(Head("normal"), t, base, out=z.channels(t, 1)))
        constant = torch.zeros(D, dtype=self.dtype, device=self.device)
        for norm in self.norms:
            assert isinstance(norm, BatchNorm)
            constant = constant + norm.constants()[1].detach()
        # Which dimension's part of the log-determinant is summed up where does not matter, their total does.
        sums = b.state("log_det", D, init=b.weight("log_det of batch norm", constant)).at()
        order = torch.arange(D)
        for number in reversed(range(len(self.layers))):
            layer = self.layers[number]
            assert isinstance(layer, AffineLayer)
            self._emit_norm(b, number, z, order)
            z = _reordered(b, f"layers.{number}.noise", z, order, layer.order, self.dtype, self.device)
            z = self._emit_layer(b, number, layer, z, sums, cond)
            order = layer.order
        layout = None if _order.is_natural(order) else b.table("order", order.tolist())
        return b.build(shape=(D,), layout=layout)

    def _emit_norm(self, b: Builder, number: int, z: Ref, order: Tensor) -> None:
        # Batch norm's inverse, in place.
        if not len(self.norms):
            return
        norm, path = self.norms[number], f"norms.{number}"
        assert isinstance(norm, BatchNorm)
        shift, log_scale = (one.detach()[order.to(self.device)] for one in norm.constants())
        for name, function, values in (("scale", "mul", log_scale.exp()), ("shift", "add", shift)):
            held = b.state(f"{path}.{name}", self.dim, init=b.weight(f"{path}.{name}.values", values)).at()
            b.add(Elementwise(z, function, z, held))

    def _emit_layer(self, b: Builder, number: int, layer: AffineLayer, noise: Ref, sums: Ref, cond: Ref | None) -> Ref:
        # x by position in the layer's order, from the noise in that order; log s is added to the sums.
        path = f"layers.{number}"
        schedule = layer.schedule(path)
        known, x = schedule.declare(b, cond), b.state(f"{path}.out", self.dim).at()
        s = b.scratch(f"{path}.scale", 1).at()
        sign = -1.0 if self.inverted else 1.0
        with b.loop("t", self.dim) as t:
            params = schedule.emit(b, t)
            m, u = params.channels(0, 1), emit_log_scale(b, self.scale, params.channels(1, 1), path)
            z, out, total = (one.channels(t, 1) for one in (noise, x, sums))
            b.add(Elementwise(s, "exp", u, alpha=sign), Elementwise(total, "add", u, total, alpha=sign))
            if self.inverted:
                b.add(Elementwise(out, "add", m, z, alpha=-1.0), Elementwise(out, "mul", out, s))
            else:
                b.add(Elementwise(out, "mul", z, s), Elementwise(out, "add", out, m))
            learned = out if self.reads_data else z
            b.add(Elementwise(known.channels(t + self.cond_dim, 1), "none", learned))
            if number == 0:
                b.add(Elementwise(s, "none", total, alpha=-1.0), Emit(out, t, s))
        return x

    def condition(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        """The program's inputs."""
        given = self._condition(cond, n)
        return {} if given is None else {"cond": given}


def _reordered(
    b: Builder, name: str, x: Ref, have: Tensor, want: Tensor, dtype: torch.dtype, device: torch.device
) -> Ref:
    # By a product with a permutation matrix: exact, and small beside the layer's own products.
    if torch.equal(have, want):
        return x
    matrix = (have[None, :] == want[:, None]).to(device, dtype)
    out = b.state(name, len(have)).at()
    b.add(Linear(out, x, b.weight(f"{name}.order", matrix)))
    return out


_DOC = """{what}

    Args:
        dim: D, the number of dimensions.
        hidden: sizes of the hidden layers of each transform's masked network.
        layers: transforms, the first of them next to the data.
        scale: s(u) by name: "exp"; "exp_clamped", u in [-5, 3]; "softplus", + 1e-3; "sigmoid", of u + 2, + 1e-3;
            "exp_soft", exp of u / (1 + |u / log 1e-3|).
        inverted: z = x s + m in the place of x = z s + m.
        orders: of the dimensions in each layer: "reverse" every second one, "random", or a permutation per layer.
        batch_norm: between the layers; `eval()` before sampling.
        cond_dim: size of a condition, floats [B, cond_dim] or class labels [B].
        activation, degrees, residual: of the masked networks, as for `MADE`.
        seed: of what is random here.

    x [B, D] of real numbers. {cost}
    """


class MAF(_Flow):
    __doc__ = _DOC.format(
        what="Masked autoregressive flow: each transform reads the data's side.",
        cost="`transform` and `log_prob` are one pass per layer; `inverse` and `sample` are one\n"
        "    incremental pass per layer, or D passes where `inverse` is to be differentiated.",
    )
    reads_data = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "power": {"dim": 6, "hidden": [100, 100], "layers": 5, "batch_norm": True},
        "gas": {"dim": 8, "hidden": [100, 100], "layers": 5, "batch_norm": True},
        "hepmass": {"dim": 21, "hidden": [512, 512], "layers": 5, "batch_norm": True},
        "miniboone": {"dim": 43, "hidden": [512, 512], "layers": 5, "batch_norm": True},
        "bsds300": {"dim": 63, "hidden": [512, 512], "layers": 5, "batch_norm": True},
    }


class IAF(_Flow):
    __doc__ = _DOC.format(
        what="Inverse autoregressive flow: each transform reads the noise's side.",
        cost="`inverse` is one pass per layer; `transform` and `log_prob` of data are one incremental\n"
        "    pass per layer, or D passes where they are to be differentiated.",
    )
    reads_data = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mnist-8x1920": {"dim": 32, "hidden": [1920], "layers": 8, "scale": "sigmoid", "activation": "elu"},
    }
