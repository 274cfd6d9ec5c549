"""Positions that are known from the start, taken in by a model's parallel pass instead of step by step.

A model with ``prefill(values [1, P, V], inputs) -> (buffers, log_prob [1, P])`` gives the program's buffers as they are
after P positions, and each position's log-probability. The run then begins at position P. Rows are taken one at a time,
so that their numbers do not hang on what else is in the batch; they are the parallel pass's, which rounds otherwise
than an executor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastar.native import core, why_missing
from fastar.sampling.instructions import Loop
from fastar.sampling.program import Program
from fastar.sampling.reference import fingerprint
from fastar.sampling.request import Request

# Fewer positions are stepped through: a pass of its own would not pay.
_WORTH_IT = 8

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def contents(model: Any) -> list[int]:
    """A fingerprint per parameter: a sampler's weights are those of its creation, and a prefill's have to be the same.

    The memory itself is read, since writes through `.data` raise no version counter.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "prefill"):
        return []
    return [_content(p.detach()) for p in model.parameters()]


def _content(p: Tensor) -> int:
    p = p.contiguous()
    if p.device.type == "cpu" and why_missing() is None:
        return int(core().fingerprint(p.data_ptr(), p.nbytes, torch.get_num_threads()))
    bits = p.flatten().view(_BITS[p.element_size()]).long()
    return int((bits * torch.arange(1, 2 * len(bits), 2, device=p.device)).sum())


@torch.no_grad()
def state(
    model: Any, program: Program, request: Request, made_with: list[int], dtype: torch.dtype
) -> dict[str, Any] | None:
    """The record from which a run of the request continues after its known prefix; None where it has to be stepped."""
    if request.given is None or not hasattr(model, "prefill") or contents(model) != made_with:
        return None
    count = min(_known(request.given), request.length - 1)
    loops = [place for place, one in enumerate(program.code) if isinstance(one, Loop)]
    if count < _WORTH_IT or program.positions is not None or len(loops) != 1:
        return None
    n = len(request.rows)
    values = torch.zeros(n, request.length, program.value.channels, dtype=torch.float64)
    values[:, :count] = request.given[:, :count].cpu()
    buffers = {one.name: torch.zeros(n, *one.shape, dtype=dtype) for one in program.buffers if one.kind != "input"}
    buffers |= {name: t.cpu().to(dtype) for name, t in request.inputs.items()}
    log_prob = torch.zeros(n, count, dtype=torch.float64)
    for row in range(n):
        inputs = {name: t[row : row + 1] for name, t in request.inputs.items()}
        found, each = model.prefill(values[row : row + 1, :count], inputs)
        log_prob[row] = each.double().cpu()[0]
        for name, t in found.items():
            buffers[name][row] = t.to(dtype).cpu()[0]
    lengths = request.lengths.clone()
    if request.stop is not None:
        ends = values[:, :count, 0] == request.stop
        first = torch.where(ends.any(1), ends.int().argmax(1) + 1, request.length)
        lengths = torch.minimum(lengths, first)
    active = torch.arange(count) < lengths[:, None]
    values[:, :count] *= active[..., None]
    total = (log_prob * active).sum(1)
    var = program.code[loops[0]].var  # type: ignore[attr-defined]
    return {
        "program": fingerprint(program),
        "place": loops[0] + 1,
        "done": count,
        "variables": {var: count},
        "buffers": buffers,
        "values": values,
        "log_prob": total,
        "log_weight": total.clone(),
        "lengths": lengths,
    }


def _known(given: Tensor) -> int:
    # How many first positions every row knows.
    unknown = given.isnan().any(2).any(0)
    return int(unknown.int().argmax()) if bool(unknown.any()) else len(unknown)
