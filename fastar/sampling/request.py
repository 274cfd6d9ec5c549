"""What the caller of a run asks for, in a program's own terms: rows, seeds, options, given values, support, inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastar.sampling.draws import DISCRETE, Options, Support
from fastar.sampling.instructions import Draw, Emit, Head, Loop, TappedLinear
from fastar.sampling.philox import as_int64
from fastar.sampling.program import Program


@dataclass(frozen=True)
class Request:
    """A run over n rows. Values and support are indexed by position; `make` builds one with every check made.

    rows and seeds are int64 [n], the bits of numbers below 2^64; lengths is int64 [n]. given is float64 [n, T, V], NaN
    where unknown. levels is bool [n or 1, T, L]; low and high are float64 [n or 1, T, V]. uniforms is float64
    [n, T, draws].
    """

    rows: Tensor
    seeds: Tensor
    length: int
    lengths: Tensor
    options: Options = field(default_factory=Options)
    given: Tensor | None = None
    levels: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    uniforms: Tensor | None = None
    stop: int | None = None
    position_offset: int = 0
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def support(self, position: int, device: torch.device) -> Support:
        """What one position may take."""
        return Support(*(None if t is None else t[:, position].to(device) for t in (self.levels, self.low, self.high)))

    def drawing(self) -> dict[str, Any]:
        """How values are drawn, under the names of the native executors' records."""
        n, options = len(self.rows), self.options
        return {
            "levels_per_row": self.levels is not None and self.levels.shape[0] == n,
            "range_per_row": self.low is not None and self.low.shape[0] == n,
            "uniform_draws": 0 if self.uniforms is None else self.uniforms.shape[2],
            "stop": -1 if self.stop is None else self.stop,
            "position_offset": self.position_offset,
            "temperature": float(options.temperature),
            "top_k": options.top_k or 0,
            "top_p": float(options.top_p or 0.0),
            "greedy": options.greedy,
        }


def heads(program: Program) -> list[Head]:
    """The laws of the program's values."""
    return [one.head for one in program.code if isinstance(one, Draw) and one.out is None]


def make(
    program: Program,
    n: int,
    *,
    seed: int | Sequence[int] | Tensor,
    length: int | Sequence[int] | Tensor | None = None,
    row_offset: int = 0,
    options: Options | None = None,
    given: Tensor | None = None,
    support: tuple[object, object] | Tensor | None = None,
    uniforms: Tensor | None = None,
    stop: int | None = None,
    position_offset: int = 0,
    inputs: Mapping[str, Tensor] | None = None,
) -> Request:
    """A checked request: ValueError or TypeError names the argument that does not fit the program."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n: expected an integer, got {type(n).__name__}")
    if n < 0:
        raise ValueError(f"n: expected 0 or more, got {n}")
    as_int64(row_offset, "row_offset")
    options = options or Options()
    for one in program.code:
        if isinstance(one, Draw):
            options.check(one.head)
    T, lengths = _lengths(program, n, length)
    low, high, levels = _support(program, n, T, support)
    if stop is not None and (program.value.levels is None or not 0 <= stop < program.value.levels):
        raise ValueError(f"stop: expected a symbol of 0..{(program.value.levels or 0) - 1}, got {stop}")
    return Request(
        rows=torch.tensor([as_int64((row_offset + i) % (1 << 64)) for i in range(n)], dtype=torch.int64),
        seeds=_seeds(n, seed),
        length=T,
        lengths=lengths,
        options=options,
        given=_given(program, n, T, given),
        levels=levels,
        low=low,
        high=high,
        uniforms=_uniforms(program, n, T, uniforms),
        stop=stop,
        position_offset=position_offset,
        inputs=_inputs(program, n, T, inputs or {}),
    )


def _seeds(n: int, seed: int | Sequence[int] | Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    each = list(seed) if isinstance(seed, Sequence) else [seed] * n
    if len(each) != n:
        raise ValueError(f"seed: expected one, or one per row ({n}), got {len(each)}")
    return torch.tensor([as_int64(one) for one in each], dtype=torch.int64)


def _lengths(program: Program, n: int, length: int | Sequence[int] | Tensor | None) -> tuple[int, Tensor]:
    if length is None or isinstance(length, int):
        T = program.length(length)
        return T, torch.full((n,), T, dtype=torch.int64)
    each = torch.as_tensor(length)
    if each.shape != (n,) or each.is_floating_point():
        raise ValueError(
            f"length: expected one integer, or one per row ({n}), got shape {list(each.shape)}, {each.dtype}"
        )
    T = program.length(int(each.max()) if n else program.positions or 1)
    if n and int(each.min()) < 1:
        raise ValueError(f"length: expected 1 or more, got {int(each.min())}")
    return T, each.to("cpu", torch.int64)


def _given(program: Program, n: int, T: int, given: Tensor | None) -> Tensor | None:
    if given is None:
        needs = [place for place, one in enumerate(program.code) if isinstance(one, Draw) and one.head.kind == "given"]
        if needs:
            raise ValueError(f"given: {program.name} does not model every position, so the first has to be given")
        return None
    _shape("given", given, (n, T, program.value.channels))
    if any(isinstance(one, Emit) for one in program.code):
        raise ValueError(f"given: the values of {program.name} are computed from noise and cannot be given")
    levels = program.value.levels
    if levels is not None:
        if given.is_floating_point() and not torch.equal(given.nan_to_num(0.0), given.nan_to_num(0.0).round()):
            raise ValueError("given: expected integers")
        known = given != -1 if not given.is_floating_point() else ~(given.isnan() | (given == -1))
        exact = torch.where(known, given.double(), float("nan"))
        wrong = known & ((exact < 0) | (exact >= levels))
        _refuse("given", wrong, given, f"0..{levels - 1}, or -1 where unknown")
    else:
        exact = given.double()
        ends = [(one.low, one.high) for one in heads(program) if one.low is not None and one.high is not None]
        for low, high in ends:
            _refuse("given", (exact < low) | (exact > high), given, f"{low} to {high}, or NaN where unknown")
        _refuse("given", exact.isinf(), given, "finite numbers, or NaN where unknown")
    partly = exact.isnan().any(2) & ~exact.isnan().all(2)
    if bool(partly.any()):
        row, position = torch.nonzero(partly)[0].tolist()
        raise ValueError(f"given: row {row}, position {position}: all of a position's channels are given, or none")
    return exact


def _refuse(name: str, wrong: Tensor, value: Tensor, expected: str) -> None:
    if bool(wrong.any()):
        at = torch.nonzero(wrong)[0].tolist()
        raise ValueError(f"{name}: expected {expected}; at {at} came {value[tuple(at)].item()}")


def _shape(name: str, value: object, *allowed: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if tuple(value.shape) not in allowed:
        wanted = " or ".join(str(list(one)) for one in allowed)
        raise ValueError(f"{name}: expected shape {wanted}, got {list(value.shape)}")


def _support(
    program: Program, n: int, T: int, support: tuple[object, object] | Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if support is None:
        return None, None, None
    if any(isinstance(one, Emit) for one in program.code):
        raise ValueError(f"support: the values of {program.name} are computed from noise and cannot be confined")
    discrete = all(head.kind in (*DISCRETE, "given") for head in heads(program))
    V, L = program.value.channels, program.value.levels
    if isinstance(support, Tensor):
        if not discrete or L is None:
            raise ValueError("support: a set of levels needs a choice among levels; pass (low, high)")
        _shape("support", support, (T, L), (n, T, L))
        if support.dtype != torch.bool:
            raise TypeError(f"support: expected bool, got {support.dtype}")
        levels = support.view(-1, T, L)
    else:
        ends = []
        for name, end in zip(("support low", "support high"), support, strict=True):
            t = torch.as_tensor(end, dtype=torch.float64)
            t = t.expand(T) if t.dim() == 0 else t
            _shape(name, t, (T,), (T, V), (n, T, V))
            ends.append((t[:, None].expand(T, V) if t.dim() == 1 else t).reshape(-1, T, V))
        low, high = ends[0], ends[1]
        if bool((low.isnan() | high.isnan()).any()):
            raise ValueError("support: holds NaN")
        empty = low > high
        if L is not None:
            low, high = low.ceil().clamp(min=0), high.floor().clamp(max=L - 1)
            empty = empty | (low > high)
        if bool(empty.any()):
            raise ValueError(f"support: position {int(torch.nonzero(empty)[0, 1])} is left with nothing")
        if not discrete:
            return low, high, None
        k = torch.arange(L or 0)
        levels = (k >= low) & (k <= high)
    if not bool(levels.any(2).all()):
        raise ValueError(f"support: position {int(torch.nonzero(~levels.any(2))[0, 1])} is left with nothing")
    return None, None, levels


def _uniforms(program: Program, n: int, T: int, uniforms: Tensor | None) -> Tensor | None:
    if uniforms is None:
        return None
    draws = max((one.head.draws for one in program.code if isinstance(one, Draw)), default=0)
    _shape("uniforms", uniforms, (n, T, draws))
    if uniforms.dtype != torch.float64:
        raise TypeError(f"uniforms: expected float64, got {uniforms.dtype}")
    if not bool(((uniforms > 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms: expected numbers between 0 and 1, both excluded")
    return uniforms


def entries(program: Program, name: str, length: int) -> int:
    """How many entries an input along the open loop has in a run of this length: those that are read."""
    ranges = {
        one.var: (0, (length if one.count is None else one.count) - 1) for one in program.code if isinstance(one, Loop)
    }
    needed = 1
    for step in program.code:
        for _, ref in step.reads:
            if ref.buffer == name:
                tapped = isinstance(step, TappedLinear)
                needed = max(needed, length if tapped else 1 + int(ref.at[0].bounds(ranges)[1]))
    return needed


def _inputs(program: Program, n: int, T: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = {one.name: one for one in program.buffers if one.kind == "input"}
    if set(wanted) != set(inputs):
        raise ValueError(f"inputs: expected {sorted(wanted)}, got {sorted(inputs)}")
    for name, one in wanted.items():
        first = entries(program, name, T) if one.shape[0] == 0 else one.shape[0]
        _shape(f"inputs[{name!r}]", inputs[name], (n, first, *one.shape[1:]))
        if not inputs[name].is_floating_point():
            raise TypeError(f"inputs[{name!r}]: expected a float tensor, got {inputs[name].dtype}")
    return dict(inputs)
