"""A masked network run position by position over a whole batch in torch: every unit is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.reference import activation as activations
from fastar.sampling.dimensions import Schedule


class Incremental:
    """The parameters of one position after the other, from what is known before it; no gradients."""

    def __init__(self, schedule: Schedule, rows: int, cond: Tensor | None) -> None:
        self.schedule = schedule
        nodes = schedule.nodes
        weight = next(one.weight for one in nodes if one.weight is not None)
        self._values = [weight.new_zeros(rows, one.width) for one in nodes]
        self._number = {id(one): number for number, one in enumerate(nodes)}
        self._weights: list[Tensor | None] = []
        self._biases: list[Tensor | None] = []
        for one in nodes:
            order = one.group.order.to(weight.device)
            columns = one.inputs[0].group.order.to(weight.device) if one.inputs else order
            self._weights.append(None if one.weight is None else one.weight[order][:, columns])
            self._biases.append(None if one.bias is None else one.bias.detach()[order])
        sorted_passes = [one.group.passes.sort().values for one in nodes]
        steps = torch.arange(schedule.dim + 1)
        # Of node i, the units of pass t are [starts[i][t], starts[i][t + 1]), and the first known[i][t] exist by then.
        self._starts = [torch.searchsorted(one, steps).tolist() for one in sorted_passes]
        self._known = [torch.searchsorted(one, steps, right=True).tolist() for one in sorted_passes]
        if cond is not None:
            self._values[0][:, : schedule.cond_dim] = cond

    def params(self, t: int) -> Tensor:
        """The parameters [rows, params] of position t; all positions before it have been given to `store`."""
        for number, one in enumerate(self.schedule.nodes[1:], 1):
            start, stop = self._starts[number][t : t + 2]
            if start == stop:
                continue
            sources = [self._number[id(each)] for each in one.inputs]
            weight, bias = self._weights[number], self._biases[number]
            if weight is not None:
                reach = self._known[sources[0]][t]
                x = self._values[sources[0]][:, :reach]
                y = torch.nn.functional.linear(
                    x, weight[start:stop, :reach], None if bias is None else bias[start:stop]
                )
                y = activations.APPLY[one.function](y)
            else:
                parts = [self._values[source][:, start:stop] for source in sources]
                y = one.alpha * parts[0]
                y = y + parts[1] if one.function == "add" else activations.APPLY[one.function](y)
            self._values[number][:, start:stop] = y
        width = self.schedule.params
        return self._values[-1][:, t * width : (t + 1) * width]

    def store(self, t: int, x: Tensor) -> None:
        """The value [rows] of position t."""
        self._values[0][:, self.schedule.cond_dim + t] = x
