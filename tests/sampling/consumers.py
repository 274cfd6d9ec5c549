"""Small models as step programs written by hand, each beside a naive full pass: the oracle of the executors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastar.sampling.builder import Builder
from fastar.sampling.instructions import (
    Accumulate,
    Draw,
    Elementwise,
    Gate,
    Gather,
    Head,
    Linear,
    Readout,
    TappedLinear,
)
from fastar.sampling.program import Program, Value


@dataclass(frozen=True)
class Consumer:
    """A program, and `params(values [n, T, V], dtype) -> [n, T, P]`: what the head reads at every position."""

    program: Program
    head: Head
    params: Callable[[Tensor, torch.dtype], Tensor]


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Normal tensors whose products keep a size near 1."""
    generator = torch.Generator().manual_seed(seed)
    scaled = {}
    for name, shape in shapes.items():
        fan_in = shape[-1] if len(shape) > 1 else 4
        scaled[name] = torch.randn(shape, generator=generator) * (1.5 / fan_in**0.5)
    return scaled


def shifted(x: Tensor) -> Tensor:
    """Entry t is entry t - 1 of x along dimension 1, the first zero."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def nade(D: int = 6, H: int = 5, seed: int = 0) -> Consumer:
    """h_i = sigmoid(c + W_{<i} x_{<i}), p_i = sigmoid(b_i + V_i h_i)."""
    w = weights(seed, c=(H,), W=(D, H), V=(D, 1, H), b=(D, 1))
    b = Builder("nade", Value("int", 1, 2), D)
    for name, t in w.items():
        b.weight(name, t)
    a, logit = b.state("a", H, init="c").at(), b.scratch("logit", 1).at()
    head = Head("bernoulli")
    with b.loop("t", D) as t:
        b.add(
            Accumulate(a, "W", row=t - 1, position=t - 1),
            Readout(logit, a, "V", row=t, bias="b", activation="sigmoid"),
            Draw(head, t, logit),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        W, V, bias, c = (w[k].to(dtype) for k in ("W", "V", "b", "c"))
        before = torch.cumsum(shifted(values[..., 0].to(dtype))[:, :, None] * shifted(W[None])[0], 1)
        h = torch.sigmoid(c + before)
        return (h * V[:, 0]).sum(2, keepdim=True) + bias

    return Consumer(b.build(shape=(D,)), head, params)


def rnade(D: int = 4, H: int = 6, K: int = 3, kind: str = "gaussian", seed: int = 1) -> Consumer:
    """NADE over reals with a mixture at every dimension."""
    w = weights(seed, c=(H,), W=(D, H), V=(D, 3 * K, H), b=(D, 3 * K))
    b = Builder(f"rnade_{kind}", Value("float", 1), D)
    for name, t in w.items():
        b.weight(name, t)
    a, out = b.state("a", H, init="c").at(), b.scratch("mixture", 3 * K).at()
    head = Head(kind, components=K)
    with b.loop("t", D) as t:
        b.add(
            Accumulate(a, "W", row=t - 1, position=t - 1, scale=0.5, shift=0.1),
            Readout(out, a, "V", row=t, bias="b", activation="relu"),
            Draw(head, t, out),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        W, V, bias, c = (w[k].to(dtype) for k in ("W", "V", "b", "c"))
        terms = (0.5 * values.to(dtype) + 0.1) * W
        h = torch.relu(c + torch.cumsum(shifted(terms), 1))
        return torch.einsum("bdh,dkh->bdk", h, V) + bias

    return Consumer(b.build(shape=(D,)), head, params)


def wavenet(
    T: int | None = None, A: int = 5, R: int = 4, S: int = 6, dilations: tuple[int, ...] = (1, 2, 4), seed: int = 2
) -> Consumer:
    """A ring per layer: gated dilated convolutions of two taps, residual and skip sums, two output layers."""
    layers = range(len(dilations))
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (A + 1, R),
        "post.w": (S, S),
        "post.b": (S,),
        "head.w": (A, S),
        "head.b": (A,),
    }
    for i in layers:
        shapes |= {f"{i}.w": (2 * R, 2, R), f"{i}.b": (2 * R,), f"{i}.res": (R, R), f"{i}.skip": (S, R)}
    w = weights(seed, **shapes)
    b = Builder("wavenet", Value("int", 1, A), T)
    for name, tensor in w.items():
        b.weight(name, tensor)
    rings = [b.state(f"x{i}", d + 1, R, ring=True) for i, d in enumerate(dilations)]
    gates, z, skip = b.scratch("gates", 2 * R).at(), b.scratch("z", R).at(), b.scratch("skip", S).at()
    hidden, logits = b.scratch("hidden", S).at(), b.scratch("logits", A).at()
    head = Head("categorical", A)
    with b.loop("t", T) as t:
        b.add(Gather(rings[0].at(t), "embed", position=t - 1, first=A))
        for i, d in enumerate(dilations):
            x = rings[i].at(t)
            b.add(
                TappedLinear(gates, x, ((-d,), (0,)), f"{i}.w", f"{i}.b"),
                Gate(z, "tanh", gates.channels(0, R), gates.channels(R, R)),
                Linear(skip, z, f"{i}.skip", add=skip if i else None),
            )
            if i + 1 < len(dilations):
                b.add(Linear(rings[i + 1].at(t), z, f"{i}.res", add=x))
        b.add(
            Elementwise(skip, "relu", skip),
            Linear(hidden, skip, "post.w", "post.b", activation="relu"),
            Linear(logits, hidden, "head.w", "head.b"),
            Draw(head, t, logits),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        v = {name: t.to(dtype) for name, t in w.items()}
        symbols = values[..., 0].long()
        x = v["embed"][torch.cat([torch.full_like(symbols[:, :1], A), symbols[:, :-1]], 1)]
        total = torch.zeros((), dtype=dtype)
        for i, d in enumerate(dilations):
            past = torch.cat([torch.zeros_like(x[:, :d]), x], 1)[:, : x.shape[1]]
            y = past @ v[f"{i}.w"][:, 0].T + x @ v[f"{i}.w"][:, 1].T + v[f"{i}.b"]
            g = torch.tanh(y[..., :R]) * torch.sigmoid(y[..., R:])
            total = total + g @ v[f"{i}.skip"].T
            x = x + g @ v[f"{i}.res"].T
        h = torch.relu(torch.relu(total) @ v["post.w"].T + v["post.b"])
        return h @ v["head.w"].T + v["head.b"]

    return Consumer(b.build(shape=None if T is None else (T,)), head, params)
