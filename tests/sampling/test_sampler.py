"""Sampler: the contract's calls over any executor."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastar import native
from fastar.sampling import Builder, Head, Program, Sampler, SampleResult, Value, sequence
from fastar.sampling.cpu import Cpu
from fastar.sampling.draws import SamplingError
from fastar.sampling.instructions import Draw, Linear
from tests.sampling.consumers import nade, rnade, wavenet
from tests.sampling.consumers_more import colours, made, pixelcnn


class Chain(nn.Module):
    """A Markov chain over symbols: the smallest model with lower()."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def lower(self) -> Program:
        return sequence(self.table, Head("categorical", 3), name="chain", first=3)


def _result(sampled: Tensor | SampleResult) -> SampleResult:
    assert isinstance(sampled, SampleResult)
    return sampled


def test_values_come_in_the_shape_and_dtype_of_the_data() -> None:
    image = Sampler(pixelcnn(H=3, W=2, C=2).program, 4).sample(seed=0)
    assert image.shape == (4, 2, 3, 2)
    assert image.dtype == torch.int64
    assert Sampler(rnade().program, 4).sample(3, seed=0).dtype == torch.float32
    assert Sampler(rnade().program, 4, dtype=torch.float64).sample(3, seed=0).dtype == torch.float64
    assert Sampler(wavenet().program, 4).sample(2, seed=0, length=5).shape == (2, 5)
    assert Sampler(colours().program, 4).sample(seed=0).shape == (4, 2, 3)
    assert Sampler(nade().program, 4).sample(0, seed=0).shape == (0, 6)


def test_the_layout_puts_values_back_where_they_were_given() -> None:
    sampler = Sampler(pixelcnn(H=3, W=2, C=2).program, 5)
    given = torch.randint(0, 3, (5, 2, 3, 2))
    assert torch.equal(sampler.sample(seed=0, given=given), given)
    known = given.clone()
    known[:, :, 1:] = -1
    completed = sampler.sample(seed=0, given=known)
    assert torch.equal(completed[:, :, 0], given[:, :, 0])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_chunks_of_rows_change_nothing(batch_size: int) -> None:
    program = nade().program
    whole = _result(Sampler(program, 64).sample(8, seed=5, return_info=True))
    parts = _result(Sampler(program, batch_size).sample(8, seed=5, return_info=True))
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.log_prob, whole.log_prob)
    shifted = Sampler(program, batch_size).sample(5, seed=5, row_offset=3)
    assert torch.equal(shifted, whole.values[3:])


def test_a_seed_is_taken_and_reported() -> None:
    sampler = Sampler(nade().program, 4)
    torch.manual_seed(1)
    first = _result(sampler.sample(return_info=True))
    second = _result(sampler.sample(return_info=True))
    assert first.seed != second.seed
    assert isinstance(first.seed, int)
    assert torch.equal(sampler.sample(seed=first.seed), first.values)
    torch.manual_seed(1)
    assert torch.equal(sampler.sample(), first.values)


def test_streams_give_the_same_values_in_order() -> None:
    sampler = Sampler(wavenet().program, 3)
    whole = sampler.sample(seed=2, length=11, temperature=0.7)
    chunks = list(sampler.stream(4, seed=2, length=11, temperature=0.7))
    assert [one.shape[1] for one in chunks] == [4, 4, 3]
    assert torch.equal(torch.cat(chunks, 1), whole)


def test_a_broken_off_stream_goes_on_elsewhere() -> None:
    program = wavenet().program
    whole = Sampler(program, 3).sample(seed=2, length=11)
    sampler = Sampler(program, 3)
    stream = sampler.stream(4, seed=2, length=11)
    begun = next(stream)
    other = Sampler(program, 3)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(torch.cat([begun, *other.resume(chunk=2)], 1), whole)
    assert torch.equal(torch.cat([begun, *stream], 1), whole)


def test_an_interrupted_sample_is_finished_by_resume() -> None:
    program = nade().program
    whole = _result(Sampler(program, 64).sample(7, seed=3, return_info=True))
    sampler = Sampler(program, 2)
    calls = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        assert total == 42
        if calls == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(7, seed=3, return_info=True, progress=interrupt)
    other = Sampler(program, 2)
    other.load_state_dict(sampler.state_dict())
    for one in (sampler, other):
        finished = _result(one.resume())
        assert torch.equal(finished.values, whole.values)
        assert torch.equal(finished.log_prob, whole.log_prob)
    with pytest.raises(RuntimeError, match="nothing was interrupted"):
        sampler.resume()


@pytest.mark.parametrize(
    ("program", "length"),
    [(nade().program, None), (rnade().program, None), (pixelcnn(H=3, W=2, C=2).program, None), (wavenet().program, 9)],
    ids=["bits", "floats", "layout", "open"],
)
def test_a_call_like_one_before_gives_the_same(program: Program, length: int | None) -> None:
    sampler = Sampler(program, 3, backend="cpu")
    calls = [{"seed": 7}, {"seed": 7}, {"seed": 2**64 - 1, "n": 2, "row_offset": 2**64 - 1}, {"seed": 7}]
    values = [sampler.sample(length=length, **call) for call in calls]
    for got, call in zip(values, calls, strict=True):
        usual = Sampler(program, 3, backend="cpu").sample(length=length, **call)
        assert got.dtype == usual.dtype
        assert torch.equal(got, usual)
    assert f"over {program.length(length):,} steps" in sampler.explain()
    values[0].fill_(0)
    assert torch.equal(values[1], values[3])
    if length is not None:
        assert sampler.sample(length=length + 4, seed=7)[:, :length].equal(values[1])
    with pytest.raises(ValueError, match="length"):
        sampler.sample(length=0 if length else 5)
    for wrong in ({"seed": -1}, {"seed": 2**64}, {"row_offset": -1}, {"n": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            sampler.sample(length=length, **wrong)
    sampler.close()
    with pytest.raises(RuntimeError, match="closed"):
        sampler.sample(length=length)


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
def test_an_interrupted_call_like_one_before_is_begun_again_by_resume() -> None:
    sampler = Sampler(nade().program, 2)
    whole = sampler.sample(seed=3)
    assert sampler.backend.sample is not None

    def interrupt(*call: object) -> None:
        raise KeyboardInterrupt

    sampler.backend = dataclasses.replace(sampler.backend, sample=interrupt)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(seed=3)
    assert torch.equal(sampler.resume(), whole)
    failing = Chain()
    bad = Sampler(failing, 2)
    bad.sample(length=3)
    with torch.no_grad():
        failing.table.weight.fill_(-float("inf"))
    bad.refresh()
    for _ in range(2):
        with pytest.raises(SamplingError, match="position 0"):
            bad.sample(length=3, seed=1)


def test_progress_is_reported_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    Sampler(nade().program, 2).sample(5, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (30, 30)
    Sampler(nade().program, 2).sample(5, seed=0, progress=True)
    assert capsys.readouterr().err.endswith("30/30\n")


def test_weights_are_those_of_creation_until_refresh() -> None:
    model = Chain()
    sampler = Sampler(model, 50)
    before = sampler.sample(seed=0, length=6)
    with torch.no_grad():
        model.table.weight.zero_()
        model.table.weight[:, 1] = 100
    assert torch.equal(sampler.sample(seed=0, length=6), before)
    sampler.refresh()
    assert bool((sampler.sample(seed=0, length=6) == 1).all())
    with torch.no_grad():
        model.table.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight table\.weight|weight weight: holds NaN"):
        sampler.refresh()
    with pytest.raises(TypeError, match="no model to follow"):
        Sampler(nade().program, 1).refresh()


def test_ragged_rows_stop_on_their_own() -> None:
    info = _result(Sampler(wavenet(A=3).program, 4).sample(16, seed=2, length=20, stop=1, return_info=True))
    assert int(info.lengths.min()) < 20
    for row, length in enumerate(info.lengths.tolist()):
        assert not bool(info.values[row, length:].any())
        assert not bool((info.values[row, : length - 1] == 1).any())


def test_several_samplers_run_in_several_threads() -> None:
    program = nade().program
    expected = [Sampler(program, 8).sample(seed=s) for s in range(4)]
    results: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        sampled = Sampler(program, 8).sample(seed=seed)
        assert isinstance(sampled, Tensor)
        results[seed] = sampled

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(torch.equal(results[s], expected[s]) for s in range(4))


def test_one_sampler_belongs_to_one_thread_at_a_time() -> None:
    sampler = Sampler(nade().program, 2)
    errors: list[BaseException] = []

    def other(done: int, total: int) -> None:
        def use() -> None:
            try:
                sampler.sample(seed=0)
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    sampler.sample(seed=0, progress=other)
    assert errors
    assert all("another thread" in str(one) for one in errors)


def _conditioned() -> Program:
    b = Builder("conditioned", Value("int", 1, 2), 3)
    cond, logit = b.input("cond", 3, 2), b.scratch("logit", 1).at()
    b.weight("w", torch.tensor([[40.0, -40.0]]))
    with b.loop("t", 3) as t:
        b.add(Linear(logit, cond.at(t), "w"), Draw(Head("bernoulli"), t, logit))
    return b.build(shape=(3,))


def test_conditions_reach_the_program_row_by_row() -> None:
    cond = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    sampler = Sampler(_conditioned(), 1)
    expected = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert torch.equal(sampler.sample(2, seed=0, cond=cond), expected)
    assert torch.equal(sampler.sample(2, seed=0, cond={"cond": cond}), expected)
    with pytest.raises(ValueError, match="cond: conditioned needs it"):
        sampler.sample(seed=0)
    with pytest.raises(ValueError, match="cond: nade takes none"):
        Sampler(nade().program, 1).sample(seed=0, cond=cond)


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
def test_explain_tells_a_steps_time_as_predicted_and_once_run_as_measured() -> None:
    sampler = Sampler(nade(D=6, H=5).program, 3, threads=1)
    assert "measured" not in sampler.explain()
    predicted = re.search(r"time +predicted ([\d.e-]+) us for 3 rows$", sampler.explain())
    assert predicted is not None
    assert 0 < float(predicted[1]) < 1000
    sampler.sample(2, seed=1)
    measured = re.search(r"measured ([\d.e-]+) us for 2 rows over 6 steps$", sampler.explain())
    assert measured is not None
    assert 0 < float(measured[1]) < 1e5
    reference = Sampler(nade(D=6, H=5).program, 3, backend="reference")
    reference.sample(2, seed=1)
    assert "time" not in reference.explain()


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
def test_a_steps_predicted_time_does_not_grow_with_the_run() -> None:
    short, long = (Cpu(made(D=D, H=90).program, threads=1).plan.predicted_ns for D in (20, 40))
    assert 0.5 < short / long < 2


def test_explain_states_memory_and_work() -> None:
    text = Sampler(nade(D=6, H=5).program, 3, backend="reference").explain()
    assert text.startswith("nade: reference (")
    # Accumulate and readout of five hidden units each, and the draw.
    assert "10 multiply-adds per row" in text
    assert "3.0 instructions" in text
    assert "for 3 rows" in text


def test_a_plan_that_does_not_fit_names_the_number() -> None:
    with pytest.raises(MemoryError, match=r"batch_size: .* rows of nade need .* MiB"):
        Sampler(nade().program, 10**14)


def _streaming(sampler: Sampler) -> Iterator[Tensor]:
    stream = sampler.stream(1, seed=0)
    next(stream)
    sampler.sample(seed=0)
    return stream


def test_misuse_is_refused() -> None:
    program = nade().program
    with pytest.raises(TypeError, match="model: expected a step program"):
        Sampler(object(), 1)
    with pytest.raises(ValueError, match="backend: expected auto, "):
        Sampler(program, 1, backend="abacus")
    with pytest.raises(RuntimeError, match="reference: runs in float32 and float64"):
        Sampler(program, 1, dtype=torch.bfloat16, backend="reference")
    with pytest.raises(ValueError, match="batch_size: expected a positive"):
        Sampler(program, 0)
    sampler = Sampler(program, 2)
    with pytest.raises(ValueError, match="n: expected at most batch_size, 2"):
        sampler.stream(1, 3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        sampler.stream(1, sead=3)
    with pytest.raises(RuntimeError, match="no call is under way"):
        sampler.state_dict()
    with pytest.raises(ValueError, match="not a sampler's record"):
        sampler.load_state_dict({"seed": 1})
    other = Sampler(nade(D=7).program, 2)
    stream = other.stream(1, seed=0)
    next(stream)
    with pytest.raises(ValueError, match="another program"):
        sampler.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="has taken its place"):
        next(_streaming(sampler))
    with pytest.raises(ValueError, match=r"given: expected shape \['n', 6\]"):
        sampler.sample(seed=0, given=torch.zeros(2, 7))
    sampler.close()
    with pytest.raises(RuntimeError, match="closed"):
        sampler.sample(seed=0)
