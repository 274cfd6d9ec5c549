"""Programs as data: files, listing, and the rules that refuse what an executor could not run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastar.sampling.builder import Builder
from fastar.sampling.draws import SamplingError
from fastar.sampling.index import Index, Ref, variable
from fastar.sampling.instructions import (
    Attention,
    Draw,
    Elementwise,
    End,
    Gather,
    Head,
    Instruction,
    Linear,
    Loop,
    Store,
    TappedLinear,
    When,
)
from fastar.sampling.program import Buffer, Program, Value
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from fastar.sampling.validate import validate
from tests.sampling.consumers import nade, wavenet
from tests.sampling.consumers_more import CONSUMERS, gated_pixelcnn, made, transformer


@pytest.mark.parametrize("name", CONSUMERS)
def test_saved_programs_load_as_they_were(name: str, tmp_path: Path) -> None:
    program = CONSUMERS[name][0]().program
    program.save(tmp_path)
    loaded = Program.load(tmp_path)
    assert replace(loaded, weights={}) == replace(program, weights={})
    assert {k: t.dtype for k, t in loaded.weights.items()} == {k: t.dtype for k, t in program.weights.items()}
    assert all(torch.equal(t, program.weights[k]) for k, t in loaded.weights.items())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["program.json", "weights.safetensors"]


def test_the_listing_shows_shapes_and_nesting() -> None:
    text = str(gated_pixelcnn().program)
    assert "  x         state   [3, 4, 1]  ring" in text
    assert "     1    loop w < 3\n     2      tapped_linear gates:8 <- source=x[h][w]:1  taps=(-2, -1)" in text
    assert "draw          head=bernoulli()  position=3*h+w  params=logit:1" in text
    assert "when t in 1::1" in str(transformer(bos=None).program)


def test_indices_are_floored_affine_forms() -> None:
    h, w = variable("h"), variable("w")
    one = (3 * h + w - 7) // 2
    assert [one.at({"h": a, "w": b}) for a, b in ((0, 0), (1, 1), (2, 4))] == [-4, -2, 1]
    assert one.bounds({"h": (0, 2), "w": (0, 4)}) == (-4, 1)
    assert str(one) == "(3*h+w-7)/2"
    assert Index.from_json(one.to_json()) == one
    assert (one + 1).at({"h": 0, "w": 0}) == -3
    assert (h - h).constant == 0
    with pytest.raises(ValueError, match="divided"):
        one + h


def _code(program: Program, change: Callable[[list[Instruction]], object]) -> Program:
    code = list(program.code)
    change(code)
    return replace(program, code=tuple(code))


def _at(place: int, **fields: object) -> Callable[[list[Instruction]], object]:
    return lambda code: code.__setitem__(place, replace(code[place], **fields))  # type: ignore[arg-type]


def _scratch(name: str, width: int) -> Ref:
    return Ref(name, (), Index(), width)


def _weight(name: str, t: torch.Tensor) -> Callable[[Program], Program]:
    return lambda p: replace(p, weights={**p.weights, name: t})


def _many_passes(program: Program) -> Program:
    around = (Loop("s", 10**9), When(variable("s"), 10**9 - 1))
    return replace(program, code=(*around, *program.code, End(), End()))


def _in_place(program: Program, step: Instruction, place: int = 3) -> Program:
    return _weight("one", torch.ones(1, 1))(_code(program, lambda code: code.insert(place, step)))


T = variable("t")
_LOGIT = Ref("logit", (), Index(), 1)
# NADE's code: 0 loop, 1 accumulate, 2 readout, 3 draw, 4 end.
NADE_REFUSED: dict[str, tuple[Callable[[Program], Program], str]] = {
    "loop left open": (lambda p: _code(p, lambda c: c.pop()), r"code\[0\]: loop is never closed"),
    "end too many": (lambda p: _code(p, lambda c: c.append(End())), r"code\[5\]: end without"),
    "no such buffer": (lambda p: _code(p, _at(3, params=_scratch("nothing", 1))), "no buffer is named 'nothing'"),
    "no such weight": (lambda p: _code(p, _at(2, weight="nothing")), "no weight is named 'nothing'"),
    "variable out of scope": (lambda p: _code(p, _at(2, row=variable("s"))), "variable s is not in scope"),
    "row beyond the table": (lambda p: _code(p, _at(2, row=T + 1)), "row: t.1 runs from 1 to 6, beyond 0..5"),
    "width of the head": (lambda p: _code(p, _at(3, head=Head("categorical", 2))), "params: expected width 2, got 1"),
    "read before written": (lambda p: _code(p, lambda c: c.pop(2)), "logit:1 is read before it is written"),
    "position out of order": (lambda p: _code(p, _at(3, position=5 - T)), "expected position 0 to come next, got 5"),
    "value not drawn": (lambda p: _code(p, _at(1, position=T, row=T)), "reads position 0, which does not exist"),
    "too few positions": (lambda p: replace(p, positions=7, shape=(7,)), "6 positions are drawn, expected 7"),
    "shape": (lambda p: replace(p, shape=(7,)), r"shape \[7\]: expected 6 elements"),
    "layout": (lambda p: _weight("l", torch.zeros(6, dtype=torch.int32))(replace(p, layout="l")), "not a permutation"),
    "NaN": (_weight("V", torch.full((6, 1, 5), float("nan"))), "weight V: holds NaN"),
    "shape of a weight": (_weight("V", torch.zeros(6, 1, 4)), r"weight: expected V of shape \['any', 1, 5\]"),
    "dtype of a weight": (_weight("V", torch.zeros(6, 1, 5, dtype=torch.int64)), "weight V: expected a float dtype"),
    "two buffers of a name": (lambda p: replace(p, buffers=p.buffers * 2), "a name occurs twice"),
    "count": (lambda p: _code(p, _at(0, count=0)), "positive count"),
    "variable in use": (lambda p: _code(p, lambda c: (c.insert(1, Loop("t", 2)), c.insert(5, End()))), "in use"),
    "activation": (lambda p: _code(p, _at(2, activation="mish")), "activation: expected one of none, relu"),
    "open loop": (lambda p: _code(p, _at(0, count=None)), "open loop"),
    "linear in place": (lambda p: _in_place(p, Linear(_LOGIT, _LOGIT, "one")), "may overlap what is written"),
    "relu of nothing": (
        lambda p: _code(p, _at(2, out=_LOGIT, source=_LOGIT, weight="b")),
        "weight: expected b of shape",
    ),
    "scratch of nothing": (
        lambda p: _code(p, lambda c: c.insert(1, Elementwise(_LOGIT, "relu", _LOGIT))),
        "a: logit:1 is read",
    ),
    "state never written": (
        lambda p: _code(
            replace(p, buffers=(*p.buffers, Buffer("s", "state", (1,)))), lambda c: c.insert(3, Draw(Head("normal"), T))
        ),
        "params: expected width 2, got None",
    ),
    "a wide loop around few draws": (_many_passes, "too many passes"),
    "levels": (lambda p: replace(p, value=Value("float", 1, 2)), "value.levels"),
}


@pytest.mark.parametrize("name", NADE_REFUSED)
def test_an_invalid_nade_is_refused(name: str) -> None:
    change, message = NADE_REFUSED[name]
    program = nade().program
    validate(program)
    with pytest.raises(ValueError, match=message):
        validate(change(program))


def test_state_that_nobody_writes_needs_an_init() -> None:
    program = nade().program
    buffers = tuple(replace(one, init=None) if one.name == "a" else one for one in program.buffers)
    validate(replace(program, buffers=buffers))
    without = _code(replace(program, buffers=buffers), lambda code: code.pop(1))
    with pytest.raises(ValueError, match="state a is read, but never written"):
        validate(without)


def test_a_ring_must_hold_what_is_read() -> None:
    program = wavenet().program
    for shape, fine in (((5, 4), True), ((4, 4), False)):
        buffers = tuple(replace(one, shape=shape) if one.name == "x2" else one for one in program.buffers)
        if fine:
            validate(replace(program, buffers=buffers))
        else:
            with pytest.raises(ValueError, match=r"reads x2\[t-4\], 4 behind .* holds 0 to 3 behind"):
                validate(replace(program, buffers=buffers))
    ahead = next(k for k, one in enumerate(program.code) if isinstance(one, TappedLinear))
    with pytest.raises(ValueError, match="-1 behind"):
        validate(_code(program, _at(ahead, taps=((1,), (0,)))))


def test_a_context_bounds_the_cache() -> None:
    program = transformer(N=8).program
    with pytest.raises(ValueError, match=r"beyond 0\.\.7"):
        validate(replace(program, limit=9))
    place = next(k for k, one in enumerate(program.code) if isinstance(one, Attention))
    with pytest.raises(ValueError, match="do not fit"):
        validate(_code(program, _at(place, heads=4, kv_heads=2)))


def test_spans_must_rise_inside_their_rows() -> None:
    program = made().program
    falling, beyond, short = [0, 3, 2, 4, 5, 6, 9], [0, 1, 2, 3, 4, 5, 10], [0, 9]
    for entries, message in ((falling, "to rise"), (beyond, "at most 9"), (short, "beyond 0..0")):
        with pytest.raises(ValueError, match=message):
            validate(_weight("spans1", torch.tensor(entries, dtype=torch.int32))(program))
    with pytest.raises(ValueError, match=r"reach: expected 0..6"):
        validate(_weight("reach1", torch.full((6,), 7, dtype=torch.int32))(program))


def test_scratch_written_under_a_condition_is_not_there_outside() -> None:
    b = Builder("conditional", Value("int", 1, 2), 4)
    logit = b.scratch("logit", 1).at()
    b.weight("w", torch.zeros(2, 1))
    with b.loop("t", 4) as t:
        with b.when(t, 0, None, 2):
            b.add(Gather(logit, "w", t - 1))
        b.add(Draw(Head("bernoulli"), t, logit))
    with pytest.raises(ValueError, match=r"code\[4\] draw: params: logit:1 is read before"):
        b.build()


def test_phases_run_every_second_row() -> None:
    b = Builder("phases", Value("int", 1, 8), 6)
    b.weight("zero", torch.zeros(1, 1))
    half, logits = b.state("half", 3, 1), b.scratch("logits", 8).at()
    x = b.scratch("x", 1).at()
    b.weight("place", torch.eye(8) * 50)
    with b.loop("h", 6) as h:
        with b.when(h, 0, None, 2):
            b.add(Store(half.at(h // 2), h - 1, shift=1.0, first=0.0))
        b.add(
            Elementwise(x, "none", half.at(h // 2)),
            Gather(logits, "place", base=h),
            Elementwise(logits, "none", logits),
            Draw(Head("categorical", 8), h, logits),
        )
    run = Reference(b.build()).start(make(b.build(), 1, seed=0))
    run.advance()
    assert run.values[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert run.machine.buffers["half"][0, :, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected 'fastar step program'"),
        ({"version": 2}, "version 2"),
        ({"code": [{"op": "jump"}]}, "expected an entry with op in"),
        ({"code": [{"op": "loop", "var": "t", "times": 3}]}, "unknown fields .'times'."),
        ({"code": [{"op": "linear"}]}, "lacks .'out', 'source', 'weight'."),
        ({"code": [{"op": "loop", "var": 3, "count": 1}]}, "loop.var: expected str"),
        ({"code": [{"op": "loop", "var": "t", "count": 1.5}]}, "loop.count: expected int"),
        ({"buffers": [{"name": "a"}]}, "lacks .'kind', 'shape'."),
        ({"value": {"kind": "int"}}, "unknown fields .'kind'."),
    ],
)
def test_files_that_are_not_programs_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    nade().program.save(tmp_path)
    data = json.loads((tmp_path / "program.json").read_text())
    (tmp_path / "program.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(ValueError, match=message):
        Program.load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    nade().program.save(tmp_path)
    text = (tmp_path / "program.json").read_text()
    (tmp_path / "program.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="not JSON"):
        Program.load(tmp_path)


def test_other_weights_must_match() -> None:
    program = nade().program
    validate(program.with_weights({name: t + 1 for name, t in program.weights.items()}))
    with pytest.raises(ValueError, match="these differ: V"):
        program.with_weights({**program.weights, "V": torch.zeros(1)})


def _mutations(data: dict[str, object], draw: Callable[[st.SearchStrategy[object]], object]) -> None:
    # Replace some leaf of the JSON by a number, a name or nothing.
    node: object = data[str(draw(st.sampled_from(["code", "buffers", "value", "positions", "limit", "shape"])))]
    parent, key = data, None
    while isinstance(node, dict | list) and len(node):
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        parent, key = node, draw(st.sampled_from(keys))  # type: ignore[assignment]
        node = node[key]
    if key is not None:
        names = st.sampled_from(["a", "x0", "gates", "x", "logits", "keys", "out", "t", "relu", "scratch", "W"])
        parent[key] = draw(st.one_of(st.integers(-3, 9), names, st.none(), st.just([]), st.floats(-2, 2)))  # type: ignore[index]


def _fuzz(data: st.DataObject, name: str) -> None:
    program = CONSUMERS[name][0]().program
    fuzzed = json.loads(json.dumps(program.to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        _mutations(fuzzed, data.draw)
    try:
        program = Program.from_json(fuzzed, program.weights)
        request = make(program, 2, seed=1, length=None if program.positions else min(6, program.limit or 6))
    except ValueError:
        return
    # Changed numbers may lead to a draw from what is no number: the run then ends with an error that says so.
    with contextlib.suppress(SamplingError):
        Reference(program).start(request).advance()


@settings(max_examples=120, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(CONSUMERS)))
def test_fuzzed_programs_are_refused_or_run(data: st.DataObject, name: str) -> None:
    _fuzz(data, name)


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(CONSUMERS)))
def test_many_fuzzed_programs_are_refused_or_run(data: st.DataObject, name: str) -> None:
    _fuzz(data, name)
