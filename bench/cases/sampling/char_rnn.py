"""CharRNN: a stack of recurrent cells, a symbol at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import compiled
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case, draw
from fastar.bench.registry import Case
from fastar.models import CharRNN


def _cell(x: Tensor, h: Tensor, both: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(functional.linear(torch.cat([x, h], 1), both, bias))


def stepwise(model: CharRNN, dtype: torch.dtype, *, compile_parts: bool = False) -> Loop:
    """A product per layer, over its input and its state side by side."""
    w = {name: t.detach().to(dtype) for name, t in model.state_dict().items()}
    layers = len(w["h_0"])
    both = [torch.cat([w[f"cells.weight_{part}_l{i}"] for part in ("ih", "hh")], 1) for i in range(layers)]
    biases = [w[f"cells.bias_ih_l{i}"] + w[f"cells.bias_hh_l{i}"] for i in range(layers)]
    cell = compiled(_cell) if compile_parts else _cell

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows = u.shape[1]
        states = [w["h_0"][i].expand(rows, -1).contiguous() for i in range(layers)]
        drawn = torch.empty(rows, len(u), dtype=torch.int64, device=u.device)
        for t in range(len(u)):
            if t > 0:
                x = functional.embedding(drawn[:, t - 1], w["embed.weight"])
                for i in range(layers):
                    x = states[i] = cell(x, states[i], both[i], biases[i])
            drawn[:, t] = draw(functional.linear(states[-1], w["head.weight"], w["head.bias"]), u[t])
        return drawn

    return loop


def char_rnn(
    symbols: int, hidden: int, layers: int, steps: int, *, rows: int, dtype: torch.dtype, small: bool = False
) -> Case:
    def make(device: torch.device) -> Workload:
        torch.manual_seed(0)
        model = CharRNN(symbols, hidden, layers).to(device)
        loops = {"cached loop": stepwise(model, torch.float32)}
        if dtype != torch.float32:
            loops[f"cached loop in {str(dtype).removeprefix('torch.')}"] = stepwise(model, dtype)
        if device.type == "cuda":
            loops["same, cells compiled"] = stepwise(model, dtype, compile_parts=True)
        return Workload(model.lower(), rows, steps, loops)

    weights = hidden * (2 * hidden * layers + symbols)
    return case(
        f"char-rnn-{layers}x{hidden}",
        make,
        Work(weights=weights, products=weights, steps=steps),
        rows=rows,
        dtype=dtype,
        shapes=f"{layers} tanh cells of {hidden}, {symbols} symbols",
        per=steps,
        unit="step",
        small=small,
    )


CASES = (
    *(
        char_rnn(128, 512, 3, 500, rows=rows, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for rows in (1, 64)
    ),
    char_rnn(11, 16, 2, 20, rows=3, dtype=torch.float32, small=True),
)
