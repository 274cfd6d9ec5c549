"""NADE of bits: one sample, and a batch of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.bench.cases.sampling._common import Work, Workload, case, on, random
from fastar.bench.registry import Case
from fastar.sampling import Builder, Head, Program, Value
from fastar.sampling.instructions import Accumulate, Draw, Readout

Parameters = dict[str, Tensor]


def parameters(dim: int, hidden: int) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": random(generator, dim, hidden, scale=3.0),
        "readout": random(generator, dim, hidden, scale=3.0),
        "hidden_bias": random(generator, hidden),
        "bias": random(generator, dim),
    }


def program(p: Parameters) -> Program:
    dim, hidden = p["weight"].shape
    b = Builder("nade", Value("int", 1, 2), dim)
    for name, weight in p.items():
        b.weight(name, {"readout": weight[:, None], "bias": weight[:, None]}.get(name, weight).contiguous())
    state, logit = b.state("state", hidden, init="hidden_bias").at(), b.scratch("logit", 1).at()
    with b.loop("d", dim) as d:
        b.add(
            Accumulate(state, "weight", row=d - 1, position=d - 1),
            Readout(logit, state, "readout", row=d, bias="bias", activation="sigmoid"),
            Draw(Head("bernoulli"), d, logit),
        )
    return b.build(shape=(dim,))


@torch.inference_mode()
def over_parameters(p: Parameters, u: Tensor) -> Tensor:
    """As published: over the model's parameters as they are trained, [H, D] and [D, H], a column and a row a step."""
    weight, readout, hidden_bias, bias = p["weight"].T.contiguous(), p["readout"], p["hidden_bias"], p["bias"]
    a = hidden_bias.expand(u.shape[1], -1)
    bits = []
    for d in range(len(u)):
        h = torch.sigmoid(a)
        probability = torch.sigmoid(h @ readout[d : d + 1, :].t() + bias[d : d + 1])
        bit = (u[d, :, None] < probability).float()
        bits.append(bit)
        a = a + bit @ weight[:, d : d + 1].t()
    return torch.cat(bits, 1)


@torch.inference_mode()
def plain(p: Parameters, u: Tensor) -> Tensor:
    """The formulas over rows laid out for them."""
    state = p["hidden_bias"].expand(u.shape[1], -1)
    bits = []
    for d in range(len(u)):
        probability = torch.sigmoid(torch.sigmoid(state) @ p["readout"][d] + p["bias"][d])
        bit = (u[d] < probability).float()
        bits.append(bit)
        state = state + bit[:, None] * p["weight"][d]
    return torch.stack(bits, 1)


@torch.inference_mode()
def in_place(p: Parameters, u: Tensor) -> Tensor:
    """The same with as few and as cheap calls as possible."""
    state = p["hidden_bias"].repeat(u.shape[1], 1)
    x = u.new_empty(u.shape[1], len(u))
    for d in range(len(u)):
        bit = u[d] < torch.sigmoid(torch.addmv(p["bias"][d], torch.sigmoid(state), p["readout"][d]))
        x[:, d] = bit
        state.addr_(x[:, d], p["weight"][d])
    return x


def nade(dim: int, hidden: int, rows: int, *, small: bool = False) -> Case:
    def make(device: torch.device) -> Workload:
        p = on(device, parameters(dim, hidden))
        loops = {
            "loop over parameters": lambda u: over_parameters(p, u),
            "loop, tuned": lambda u: plain(p, u),
            "loop, tuned, in place": lambda u: in_place(p, u),
        }
        return Workload(program(p), rows, dim, loops)

    # A step adds a row of one matrix and multiplies by a row of another.
    return case(
        f"nade-{dim}x{hidden}",
        make,
        Work(weights=2 * hidden, products=2 * hidden, steps=dim),
        rows=rows,
        dtype=torch.float32,
        shapes=f"D={dim}, H={hidden}",
        per=rows,
        unit="sample",
        small=small,
    )


CASES = (nade(784, 500, 1), nade(784, 500, 64), nade(784, 500, 1024), nade(49, 40, 3, small=True))
