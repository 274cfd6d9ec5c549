"""Joining instructions: fewer of them, the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastar.sampling import Builder, Head, Program, Value, fuse, lower, sequence
from fastar.sampling.instructions import Draw, Elementwise, Gather, Linear
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.sampling.consumers_more import CONSUMERS


class Gated(nn.Module):
    """A residual block with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.gate = nn.Linear(4, 8), nn.Linear(4, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.wide(x).chunk(2, dim=-1)
        x = x + self.narrow(torch.tanh(a) * torch.sigmoid(b))
        c, d = self.gate(x).chunk(2, dim=-1)
        return x + c * nn.functional.silu(d)


def _params(program: Program, length: int | None) -> Tensor:
    run = Reference(program).start(make(program, 3, seed=1, length=length), trace=True)
    run.advance()
    assert run.trace is not None
    return torch.stack([one.params for one in run.trace], 1)


def test_a_lowered_module_shrinks_to_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(4, 4), Gated(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    fused = sequence(module, Head("categorical", 3), first=3)
    monkeypatch.setattr(lower, "fuse", lambda program: program)
    plain = sequence(module, Head("categorical", 3), first=3)
    names = ["gather", "linear", "gate", "linear", "linear", "gate", "elementwise", "linear", "linear", "draw"]
    assert [one.op for one in fused.code[1:-1]] == names
    assert len(plain.code) == 17
    assert torch.equal(_params(fused, 6), _params(plain, 6))


@pytest.mark.parametrize("name", [name for name in CONSUMERS if name != "transformer_given"])
def test_programs_written_by_hand_keep_their_bits(name: str) -> None:
    make_one, length = CONSUMERS[name]
    program = make_one().program
    fused = fuse(program)
    assert len(fused.code) <= len(program.code)
    assert torch.equal(_params(fused, length), _params(program, length))


def test_what_is_read_twice_or_changed_between_stays() -> None:
    b = Builder("kept", Value("int", 1, 2), 2)
    b.weight("w", torch.randn(2, 2))
    b.weight("e", torch.randn(2, 2))
    x, y, z, s = (b.scratch(name, 2).at() for name in "xyzs")
    with b.loop("t", 2) as t:
        b.add(
            Gather(x, "e", t - 1, first=0),
            Linear(y, x, "w"),
            Elementwise(x, "none", x, alpha=2.0),
            # Joining would make the product read x after it has changed.
            Elementwise(z, "tanh", y),
            # z is read twice from here on.
            Elementwise(s, "relu", z),
            Elementwise(s, "add", s, z),
            Elementwise(s, "add", s, x),
            Draw(Head("categorical", 2), t, s),
        )
    program = b.build()
    assert fuse(program).code == program.code


def test_a_sum_of_embeddings_is_one_gather() -> None:
    b = Builder("sum", Value("int", 1, 2), 2)
    b.weight("e", torch.randn(2, 2))
    x, y, z = (b.scratch(name, 2).at() for name in "xyz")
    with b.loop("t", 2) as t:
        b.add(
            Gather(x, "e", base=t),
            Gather(y, "e", t - 1),
            Elementwise(z, "add", x, y),
            Draw(Head("categorical", 2), t, z),
        )
    program = b.build()
    assert [one.op for one in fuse(program).code] == ["loop", "gather", "gather", "draw", "end"]
    assert torch.equal(_params(fuse(program), None), _params(program, None))


def test_what_nobody_reads_goes_with_its_weights() -> None:
    b = Builder("unread", Value("int", 1, 2), 2)
    for name in "ewvu":
        b.weight(name, torch.randn(2, 2))
    x, y, z, s = (b.scratch(name, 2).at() for name in "xyzs")
    with b.loop("t", 2) as t:
        b.add(
            Gather(x, "e", t - 1, first=0),
            Linear(y, x, "w"),
            # Read by what is not read itself.
            Linear(z, x, "v"),
            Linear(s, z, "u"),
            Draw(Head("categorical", 2), t, y),
        )
    program = b.build()
    assert [one.op for one in fuse(program).code] == ["loop", "gather", "linear", "draw", "end"]
    assert set(fuse(program).weights) == {"e", "w"}
    assert torch.equal(_params(fuse(program), None), _params(program, None))


def test_a_copy_goes_where_it_is_wanted() -> None:
    b = Builder("copied", Value("int", 1, 2), 2)
    b.weight("e", torch.randn(2, 2))
    x, kept = b.scratch("x", 2).at(), b.state("kept", 2, 2, ring=True)
    with b.loop("t", 2) as t:
        b.add(
            Gather(x, "e", t - 1, first=0),
            Elementwise(kept.at(t), "none", x),
            Draw(Head("categorical", 2), t, kept.at(t)),
        )
    program = b.build()
    assert [one.op for one in fuse(program).code] == ["loop", "gather", "draw", "end"]
    assert torch.equal(_params(fuse(program), None), _params(program, None))
