"""What a run may be asked for, and the errors for what it may not."""

from __future__ import annotations

import pytest
import torch

from fastar.sampling.draws import Options
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.sampling.consumers import nade, rnade, wavenet
from tests.sampling.consumers_more import colours, flow, transformer

NAN = float("nan")


def _refused(error: type[Exception], message: str, program: object, n: object = 2, **options: object) -> None:
    with pytest.raises(error, match=message):
        make(program, n, **{"seed": 0, **options})  # type: ignore[arg-type]


def test_rows_and_seeds() -> None:
    program = nade().program
    _refused(TypeError, "n: expected an integer", program, 2.0)
    _refused(ValueError, "n: expected 0 or more", program, -1)
    _refused(ValueError, "seed: expected 0 to", program, seed=-1)
    _refused(ValueError, r"seed: expected one, or one per row \(2\), got 3", program, seed=[1, 2, 3])
    _refused(ValueError, "row_offset: expected 0 to", program, row_offset=-1)
    assert make(program, 0, seed=0).rows.shape == (0,)


def test_an_empty_batch_runs() -> None:
    program = nade().program
    run = Reference(program).start(make(program, 0, seed=0))
    run.advance()
    assert run.values.shape == (0, 6, 1)


def test_lengths() -> None:
    _refused(ValueError, "length: nade has 6 positions, got 5", nade().program, length=5)
    _refused(ValueError, "length: wavenet is open", wavenet().program)
    _refused(ValueError, "length: expected 1 to 8 for transformer, got 9", transformer().program, length=9)
    _refused(ValueError, "length: expected at least 1 for wavenet, got 0", wavenet().program, length=0)
    _refused(ValueError, "length: expected 1 or more, got 0", wavenet().program, length=[0, 3])
    _refused(ValueError, r"one per row \(2\)", wavenet().program, length=[1, 2, 3])


def test_given_values() -> None:
    program = nade().program
    _refused(TypeError, "given: expected a tensor", program, given=[0])
    _refused(ValueError, r"given: expected shape \[2, 6, 1\], got \[2, 6\]", program, given=torch.zeros(2, 6))
    _refused(ValueError, r"given: expected 0..1, .* at \[0, 0, 0\] came 2", program, given=torch.full((2, 6, 1), 2))
    _refused(ValueError, r"given: expected 0..1, .* came -2", program, given=torch.full((2, 6, 1), -2))
    _refused(ValueError, "given: expected integers", program, given=torch.full((2, 6, 1), 0.5))
    _refused(ValueError, "given: expected finite", rnade().program, given=torch.full((2, 4, 1), float("inf")))
    partly = torch.tensor([[[1, -1, 2], [0, 0, 0]]])
    _refused(ValueError, "row 0, position 0: all of a position's channels", colours().program, 1, given=partly)
    _refused(ValueError, "given: the values of flow are computed", flow()[0], given=torch.full((2, 3, 1), NAN))
    _refused(ValueError, "given: transformer does not model every position", transformer(bos=None).program, length=3)
    unknown = make(program, 2, seed=0, given=torch.full((2, 6, 1), NAN)).given
    assert unknown is not None
    assert bool(unknown.isnan().all())


def test_support() -> None:
    program, real = nade().program, rnade().program
    _refused(ValueError, "support: position 0 is left with nothing", program, support=(1, 0))
    _refused(ValueError, "support: position 0 is left with nothing", program, support=(2, 5))
    none = torch.ones(6, 2, dtype=torch.bool)
    none[3] = False
    _refused(ValueError, "support: position 3 is left with nothing", program, support=none)
    _refused(ValueError, r"support: expected shape \[6, 2\]", program, support=none[:5])
    _refused(TypeError, "support: expected bool", program, support=none.int())
    _refused(ValueError, "support: a set of levels needs", real, support=none)
    _refused(ValueError, "support: holds NaN", real, support=(NAN, 1.0))
    _refused(ValueError, "support low: expected shape", real, support=(torch.zeros(3), 1.0))
    _refused(ValueError, "support: the values of flow", flow()[0], support=(0.0, 1.0))


def test_uniforms_options_and_stop() -> None:
    program = nade().program
    _refused(ValueError, r"uniforms: expected shape \[2, 6, 1\]", program, uniforms=torch.rand(2, 6))
    _refused(TypeError, "uniforms: expected float64", program, uniforms=torch.rand(2, 6, 1))
    _refused(
        ValueError, "uniforms: expected numbers between", program, uniforms=torch.ones(2, 6, 1, dtype=torch.float64)
    )
    _refused(ValueError, "top_p: the head gaussian", rnade().program, options=Options(top_p=0.5))
    _refused(ValueError, "stop: expected a symbol of 0..1, got 2", program, stop=2)
    _refused(ValueError, r"inputs: expected \[\], got \['cond'\]", program, inputs={"cond": torch.zeros(2)})
