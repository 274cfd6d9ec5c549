"""WaveNet: gated dilated convolutions of two taps, residual and skip sums, two output layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastar.bench.alternatives import compiled
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case, draw, on, random
from fastar.bench.registry import Case
from fastar.sampling import Builder, Head, Program, Value
from fastar.sampling.instructions import Draw, Gate, Gather, Linear, TappedLinear

Parameters = dict[str, Tensor]


def parameters(symbols: int, residual: int, skip: int, layers: int) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    p = {
        "embed": random(generator, symbols + 1, residual, scale=4.0),
        "post": random(generator, skip, skip, scale=1.5),
        "post.bias": random(generator, skip),
        "head": random(generator, symbols, skip, scale=1.5),
        "head.bias": random(generator, symbols),
    }
    for i in range(layers):
        p[f"{i}.gates"] = random(generator, 2 * residual, 2 * residual)
        p[f"{i}.gates.bias"] = random(generator, 2 * residual)
        p[f"{i}.residual"] = random(generator, residual, residual)
        p[f"{i}.skip"] = random(generator, skip, residual)
    return p


def program(p: Parameters, dilations: Sequence[int]) -> Program:
    """As a lowered model's, without biases on residual and skip, as in the loop below."""
    symbols, skip_width, R = *p["head"].shape, p["embed"].shape[1]
    b = Builder("wavenet", Value("int", 1, symbols), None)
    for name, weight in p.items():
        b.weight(name, weight.view(2 * R, 2, R) if name.endswith("gates") else weight)
    rings = [b.state(f"x{i}", d + 1, R, ring=True) for i, d in enumerate(dilations)]
    gates, z, skip = b.scratch("gates", 2 * R).at(), b.scratch("z", R).at(), b.scratch("skip", skip_width).at()
    hidden, logits = b.scratch("hidden", skip_width).at(), b.scratch("logits", symbols).at()
    with b.loop("t", None) as t:
        b.add(Gather(rings[0].at(t), "embed", position=t - 1, first=symbols))
        for i, d in enumerate(dilations):
            x, last = rings[i].at(t), i + 1 == len(dilations)
            b.add(
                TappedLinear(gates, x, ((-d,), (0,)), f"{i}.gates", f"{i}.gates.bias"),
                Gate(z, "tanh", gates.channels(0, R), gates.channels(R, R)),
                Linear(skip, z, f"{i}.skip", add=skip if i else None, activation="relu" if last else "none"),
            )
            if not last:
                b.add(Linear(rings[i + 1].at(t), z, f"{i}.residual", add=x))
        b.add(
            Linear(hidden, skip, "post", "post.bias", activation="relu"),
            Linear(logits, hidden, "head", "head.bias"),
            Draw(Head("categorical", symbols), t, logits),
        )
    return b.build()


class Layer(nn.Module):
    """A layer as trained: convolutions for filter and gate, and of one tap for residual and skip."""

    def __init__(self, p: Parameters, i: int) -> None:
        super().__init__()
        R, S = p["embed"].shape[1], len(p["post"])
        self.filter, self.gate = nn.Conv1d(R, R, 2), nn.Conv1d(R, R, 2)
        self.residual, self.skip = nn.Conv1d(R, R, 1, bias=False), nn.Conv1d(R, S, 1, bias=False)
        taps = p[f"{i}.gates"].view(2 * R, 2, R).transpose(1, 2)
        halves = zip(taps.split(R), p[f"{i}.gates.bias"].split(R), strict=True)
        with torch.no_grad():
            for convolution, (weight, bias) in zip((self.filter, self.gate), halves, strict=True):
                convolution.weight.copy_(weight)
                convolution.bias.copy_(bias)  # type: ignore[union-attr]
            self.residual.weight.copy_(p[f"{i}.residual"][..., None])
            self.skip.weight.copy_(p[f"{i}.skip"][..., None])

    def forward(self, taps: Tensor) -> tuple[Tensor, Tensor]:
        """(what the next layer sees, what the output layers see) of an input and the one a dilation ago, [B, R, 2]."""
        z = torch.tanh(self.filter(taps)) * torch.sigmoid(self.gate(taps))
        return taps[:, :, 1:] + self.residual(z), self.skip(z)


def modules(p: Parameters, dilations: Sequence[int]) -> Loop:
    """As published: the model's own modules, over a queue per layer."""
    S, symbols, device = len(p["post"]), len(p["head"]), p["post"].device
    layers = nn.ModuleList(Layer(p, i) for i in range(len(dilations))).to(device)
    post, head = (nn.Conv1d(S, outputs, 1, device=device) for outputs in (S, symbols))
    embed = nn.Embedding.from_pretrained(p["embed"])
    with torch.no_grad():
        for convolution, name in ((post, "post"), (head, "head")):
            convolution.weight.copy_(p[name][..., None])
            convolution.bias.copy_(p[f"{name}.bias"])  # type: ignore[union-attr]

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows = u.shape[1]
        queues = [deque([u.new_zeros(rows, p["embed"].shape[1], 1)] * d) for d in dilations]
        symbol = torch.full((rows,), len(p["embed"]) - 1, device=u.device)
        drawn = []
        for t in range(len(u)):
            x = embed(symbol)[:, :, None]
            skip: Tensor | float = 0.0
            for layer, queue in zip(layers, queues, strict=True):
                taps = torch.cat([queue.popleft(), x], 2)
                queue.append(x)
                x, out = layer(taps)
                skip = skip + out
            assert isinstance(skip, Tensor)
            hidden = functional.relu(post(functional.relu(skip)))
            symbol = draw(head(hidden)[:, :, 0], u[t])
            drawn.append(symbol)
        return torch.stack(drawn, 1)

    return loop


def plain(p: Parameters, dilations: Sequence[int]) -> Loop:
    """A queue per layer, and a product for each tap of filter and gate, for residual and for skip."""
    R = p["embed"].shape[1]
    parts = [
        [part.contiguous() for half in p[f"{i}.gates"].split(R) for part in half.split(R, 1)]
        for i in range(len(dilations))
    ]
    biases = [p[f"{i}.gates.bias"].split(R) for i in range(len(dilations))]

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows = u.shape[1]
        queues = [deque([u.new_zeros(rows, R)] * d) for d in dilations]
        symbol = torch.full((rows,), len(p["embed"]) - 1, device=u.device)
        drawn = []
        for t in range(len(u)):
            x = functional.embedding(symbol, p["embed"])
            skip: Tensor | float = 0.0
            for i, queue in enumerate(queues):
                past = queue.popleft()
                queue.append(x)
                a = functional.linear(past, parts[i][0]) + functional.linear(x, parts[i][1], biases[i][0])
                b = functional.linear(past, parts[i][2]) + functional.linear(x, parts[i][3], biases[i][1])
                z = torch.tanh(a) * torch.sigmoid(b)
                skip = skip + functional.linear(z, p[f"{i}.skip"])
                x = x + functional.linear(z, p[f"{i}.residual"])
            assert isinstance(skip, Tensor)
            hidden = torch.relu(functional.linear(torch.relu(skip), p["post"], p["post.bias"]))
            symbol = draw(functional.linear(hidden, p["head"], p["head.bias"]), u[t])
            drawn.append(symbol)
        return torch.stack(drawn, 1)

    return loop


def _layer(past: Tensor, x: Tensor, gates: Tensor, bias: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    R = x.shape[1]
    y = functional.linear(torch.cat([past, x], 1), gates, bias)
    y = functional.linear(torch.tanh(y[:, :R]) * torch.sigmoid(y[:, R:]), both)
    return x + y[:, :R], y[:, R:]


def _logits(skip: Tensor, post: Tensor, post_bias: Tensor, head: Tensor, head_bias: Tensor) -> Tensor:
    return functional.linear(torch.relu(functional.linear(torch.relu(skip), post, post_bias)), head, head_bias)


def joined(p: Parameters, dilations: Sequence[int], dtype: torch.dtype, *, compile_parts: bool = False) -> Loop:
    """The same with as few products as possible: both taps of filter and gate in one, residual and skip in another."""
    p = {name: weight.to(dtype) for name, weight in p.items()}
    R = p["embed"].shape[1]
    both = [torch.cat([p[f"{i}.residual"], p[f"{i}.skip"]]) for i in range(len(dilations))]
    layer, logits = (compiled(_layer), compiled(_logits)) if compile_parts else (_layer, _logits)

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows = u.shape[1]
        queues = [u.new_zeros(d, rows, R, dtype=dtype) for d in dilations]
        symbol = torch.full((rows,), len(p["embed"]) - 1, device=u.device)
        drawn = torch.empty(rows, len(u), dtype=torch.int64, device=u.device)
        for t in range(len(u)):
            x = functional.embedding(symbol, p["embed"])
            skip: Tensor | float = 0.0
            for i, d in enumerate(dilations):
                past = queues[i][t % d]
                y, more = layer(past, x, p[f"{i}.gates"], p[f"{i}.gates.bias"], both[i])
                past.copy_(x)
                x, skip = y, skip + more
            assert isinstance(skip, Tensor)
            symbol = draw(logits(skip, p["post"], p["post.bias"], p["head"], p["head.bias"]), u[t])
            drawn[:, t] = symbol
        return drawn

    return loop


def wavenet(
    residual: int,
    skip: int,
    symbols: int,
    dilations: Sequence[int],
    steps: int,
    *,
    rows: int = 1,
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    def make(device: torch.device) -> Workload:
        p = on(device, parameters(symbols, residual, skip, len(dilations)))
        loops = {
            "cached loop of modules": modules(p, dilations),
            "cached loop, tuned": plain(p, dilations),
            "cached loop, tuned, joined": joined(p, dilations, torch.float32),
        }
        narrow = dtype in (torch.bfloat16, torch.float16)
        if narrow:
            loops[f"cached loop, tuned, joined, in {str(dtype).removeprefix('torch.')}"] = joined(p, dilations, dtype)
        if device.type == "cuda":
            fast = dtype if narrow else torch.float32
            loops["cached loop, tuned, joined, layers compiled"] = joined(p, dilations, fast, compile_parts=True)
        return Workload(program(p, dilations), rows, steps, loops, captured=min(steps, 50))

    weights = len(dilations) * residual * (5 * residual + skip) - residual**2 + skip * (skip + symbols)
    return case(
        f"wavenet-{residual}x{skip}x{len(dilations)}",
        make,
        Work(weights=weights, products=weights, steps=steps),
        rows=rows,
        dtype=dtype,
        shapes=f"R={residual}, S={skip}, A={symbols}, {len(dilations)} layers",
        per=steps,
        unit="step",
        small=small,
        devices=devices,
    )


_ONCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TWICE, _THRICE = _ONCE * 2, _ONCE * 3


def _on_a_gpu(residual: int, skip: int, dilations: Sequence[int], *rows: int) -> list[Case]:
    return [wavenet(residual, skip, 256, dilations, 500, rows=n, dtype=torch.float16, devices=("cuda",)) for n in rows]


CASES = (
    wavenet(64, 256, 256, _TWICE, 2000),
    wavenet(64, 256, 256, _TWICE, 2000, dtype=torch.bfloat16),
    wavenet(64, 256, 256, _TWICE, 2000, dtype=torch.int8),
    wavenet(64, 256, 256, _TWICE, 100, rows=16),
    *_on_a_gpu(64, 256, _TWICE, 1, 16, 128),
    *_on_a_gpu(64, 128, _THRICE, 1),
    *_on_a_gpu(128, 256, _THRICE, 1, 128),
    wavenet(8, 12, 10, (1, 2, 4), 20, rows=2, small=True),
)
