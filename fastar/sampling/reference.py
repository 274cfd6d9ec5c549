"""The reference executor: a step program run by a loop in Python over torch tensors.

It defines what every instruction means, on any device, in float32 or float64.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastar.sampling import draws, philox
from fastar.sampling.instructions import Draw, Emit, End, Head, Instruction, Loop, When
from fastar.sampling.machine import EXECUTE, Machine
from fastar.sampling.program import Program, jumps
from fastar.sampling.request import Request


@dataclass(frozen=True)
class Trace:
    """One draw as it happened: parameters [n, P], uniforms [n, draws] and values [n, V], for comparing executors."""

    position: int
    head: Head
    params: Tensor
    u: Tensor
    value: Tensor


def fingerprint(program: Program) -> str:
    """A digest of everything but the weights' contents: equal for runs that can continue one another."""
    return hashlib.sha256(json.dumps(program.to_json(), sort_keys=True).encode()).hexdigest()


class Reference:
    """Runs a program in torch. Bit for bit the same for a row whatever else is in the batch (see `arithmetic`)."""

    name = "reference"
    interruptible = False

    def __init__(
        self, program: Program, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: the reference executor runs in float32 or float64, got {dtype}")
        self.program = program
        self.dtype = dtype
        self.device = torch.device(device)
        self.jumps = jumps(program.code)
        self.repack(program.weights)

    def repack(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names, shapes and dtypes."""
        self.program = self.program.with_weights(weights)
        self.weights = {
            # Copies: a model that trains on must not change the sampler under way.
            name: t.to(self.device, self.dtype if t.is_floating_point() else t.dtype, copy=True)
            for name, t in weights.items()
        }

    def start(self, request: Request, trace: bool = False) -> Run:
        """A run at its first position."""
        return Run(self, request, trace)

    def resume(self, request: Request, state: Mapping[str, Any]) -> Run:
        """The run that `Run.state_dict` recorded, under the same request."""
        run = Run(self, request, False)
        run.load_state_dict(state)
        return run


class Run:
    """A run of the reference executor: its place, its buffers, and the rows' values and sums so far."""

    def __init__(self, executor: Reference, request: Request, trace: bool) -> None:
        self.executor = executor
        self.program = executor.program
        self.request = request
        self.trace: list[Trace] | None = [] if trace else None
        device = executor.device
        n, T, V = len(request.rows), request.length, self.program.value.channels
        self.values = torch.zeros(n, T, V, dtype=torch.float64, device=device)
        self.log_prob = torch.zeros(n, dtype=torch.float64, device=device)
        self.log_weight = torch.zeros(n, dtype=torch.float64, device=device)
        self.lengths = request.lengths.to(device)
        self.place = 0
        self.done = 0
        self.machine = Machine(self.program, executor.weights, n, executor.dtype, device, request.inputs, self.values)

    @property
    def finished(self) -> bool:
        """Whether every position is complete, or every row has ended."""
        return self.done == self.request.length or bool((self.lengths <= self.done).all())

    def pause(self) -> None:
        """Nothing: this executor runs while it is asked to, and no longer."""

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """values, log_prob, lengths and log_weight on the host."""
        return self.values.cpu(), self.log_prob.cpu(), self.lengths.cpu(), self.log_weight.cpu()

    @torch.no_grad()
    def advance(self, positions: int | None = None, ahead: bool = False) -> int:
        """Run until this many more positions are complete (None: all), never `ahead`; returns how many were."""
        before = self.done
        target = self.request.length if positions is None else min(self.done + positions, self.request.length)
        code, variables = self.program.code, self.machine.variables
        while self.done < target and not self.finished:
            step = code[self.place]
            if isinstance(step, Loop):
                variables[step.var] = 0
            elif isinstance(step, When):
                if not step.holds(step.index.at(variables)):
                    self.place = self.executor.jumps[self.place]
            elif isinstance(step, End):
                self._end(code)
            else:
                self._execute(step)
            self.place += 1
        return self.done - before

    def _end(self, code: tuple[Instruction, ...]) -> None:
        start = self.executor.jumps[self.place]
        opened = code[start]
        if isinstance(opened, Loop):
            variables = self.machine.variables
            variables[opened.var] += 1
            if variables[opened.var] < (self.request.length if opened.count is None else opened.count):
                self.place = start
            else:
                del variables[opened.var]

    def _execute(self, step: Instruction) -> None:
        if isinstance(step, Draw):
            try:
                self._draw(step)
            except draws.SamplingError as error:
                raise draws.SamplingError(f"position {self.done}, code[{self.place}] draw: {error}") from None
        elif isinstance(step, Emit):
            active = self.done < self.lengths
            self._complete(self.machine.read(step.source).double(), active)
            if step.log_prob is not None:
                self.log_prob += self.machine.read(step.log_prob)[:, 0].double() * active
        else:
            EXECUTE[type(step)](self.machine, step)

    def _uniforms(self, head: Head, position: int) -> Tensor:
        request = self.request
        if request.uniforms is not None:
            return request.uniforms[:, position, : head.draws].to(self.values.device)
        at = position + request.position_offset
        each = [
            (philox.continuous if draws.is_continuous(head, d) else philox.discrete)(request.seeds, request.rows, at, d)
            for d in range(head.draws)
        ]
        stacked = torch.stack(each, 1) if each else torch.zeros(len(request.rows), 0, dtype=torch.float64)
        return stacked.to(self.values.device)

    def _draw(self, step: Draw) -> None:
        head, request = step.head, self.request
        integer = self.program.value.dtype == "int" and step.out is None
        position = step.position.at(self.machine.variables)
        active = self.done < self.lengths
        if head.kind == "given":
            assert request.given is not None
            value = request.given[:, position].to(self.values.device)
            if bool(value.isnan().any()):
                row = int(value.isnan().any(1).int().argmax())
                raise draws.SamplingError(f"row {row}: the value is not modelled and has to be given")
            self._complete(value, active)
            return
        assert step.params is not None
        params = self.machine.read(step.params)
        u = self._uniforms(head, position)
        if step.out is not None:
            noise = draws.Options(temperature=request.options.temperature, greedy=request.options.greedy)
            value = draws.draw(head, params, u, noise, integer=False).to(self.executor.dtype)
            self.machine.write(step.out, value)
            self.log_prob += draws.log_prob(head, params, value.double(), integer=False) * active
            return
        value = draws.draw(head, params, u, request.options, request.support(position, params.device), integer)
        if not integer:
            # What is drawn is what the caller gets: a number of the run's dtype.
            value = value.to(self.executor.dtype).double()
        known = torch.zeros_like(active)
        if request.given is not None:
            given = request.given[:, position].to(value.device)
            known = ~given.isnan().any(1)
            value = torch.where(known[:, None], given, value)
        log_prob = draws.log_prob(head, params, value, integer)
        self.log_prob += torch.where(active, log_prob, 0.0)
        self.log_weight += torch.where(active & known, log_prob, 0.0)
        if self.trace is not None:
            self.trace.append(Trace(position, head, params.clone(), u, value))
        self._complete(value, active)

    def _complete(self, value: Tensor, active: Tensor) -> None:
        self.values[:, self.done] = torch.where(active[:, None], value, 0.0)
        self.done += 1
        self.machine.done = self.done
        if self.request.stop is not None:
            ended = active & (value[:, 0] == self.request.stop)
            self.lengths = torch.where(
                ended, torch.minimum(self.lengths, torch.full_like(self.lengths, self.done)), self.lengths
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run on another machine needs to continue this one, beside the request."""
        return {
            "program": fingerprint(self.program),
            "place": self.place,
            "done": self.done,
            "variables": dict(self.machine.variables),
            "buffers": {name: t.clone() for name, t in self.machine.buffers.items()},
            **{name: getattr(self, name).clone() for name in _TENSORS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a record of `state_dict`; ValueError for one of another program or of another request."""
        if state.get("program") != fingerprint(self.program):
            raise ValueError(f"state: recorded by another program than {self.program.name}")
        own = [(name, getattr(self, name), state[name]) for name in _TENSORS]
        for name, have, came in own + [(name, t, state["buffers"][name]) for name, t in self.machine.buffers.items()]:
            if came.shape != have.shape or came.dtype != have.dtype:
                raise ValueError(
                    f"state: {name} is {came.dtype} {list(came.shape)}, expected {have.dtype} {list(have.shape)}"
                )
            have.copy_(came)
        self.place, self.done = state["place"], state["done"]
        self.machine.done = self.done
        self.machine.variables.clear()
        self.machine.variables.update(state["variables"])


_TENSORS = ("values", "log_prob", "log_weight", "lengths")
