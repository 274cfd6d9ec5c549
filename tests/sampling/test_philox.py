"""Known answers of Philox-4x32-10 and of the uniform numbers made of it."""

from __future__ import annotations

import pytest
import torch

from fastar.sampling import philox


def _all(value: int) -> list[torch.Tensor]:
    return [torch.tensor([value])] * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_known_answers(value: int, expected: tuple[int, ...]) -> None:
    assert tuple(int(w) for w in philox.philox(_all(value), _all(value)[:2])) == expected


def test_words_and_uniforms_of_a_named_draw() -> None:
    seed, row = torch.tensor([1234567890123]), torch.tensor([5])
    assert [int(w) for w in philox.words(seed, row, 7, 2)] == [0x2948897E, 0x5B4296E0, 0xA145375C, 0xC1A62288]
    assert float(philox.discrete(seed, row, 7, 2)) == 0.16126304864883423
    expected = ((0x2948897E >> 6) * 2**26 + (0x5B4296E0 >> 6) + 0.5) / 2**52
    assert float(philox.continuous(seed, row, 7, 2)) == expected


def test_seeds_and_rows_use_all_their_bits() -> None:
    seeds = torch.tensor([philox.as_int64(s) for s in (0, 1, 1 << 32, (1 << 64) - 1, 1 << 63)])
    rows = torch.tensor([philox.as_int64(r) for r in (0, 1 << 32, 1 << 63)])
    drawn = {float(philox.discrete(seeds[i : i + 1], rows[j : j + 1], 0, 0)) for i in range(5) for j in range(3)}
    assert len(drawn) == 15


def test_uniforms_are_exact_and_never_0_or_1() -> None:
    seed, rows = torch.zeros(200_000, dtype=torch.int64), torch.arange(200_000)
    for make in (philox.discrete, philox.continuous):
        u = make(seed, rows, 3, 1)
        assert float(u.min()) > 0
        assert float(u.max()) < 1
        assert abs(float(u.mean()) - 0.5) < 5 / (12 * 200_000) ** 0.5
    u = philox.discrete(seed, rows, 3, 1)
    assert torch.equal(u.float().double(), u)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed: expected 0 to .* got {seed}"):
        philox.as_int64(seed)


@pytest.mark.parametrize("seed", [1.5, True, "1"])
def test_seeds_of_another_type_are_refused(seed: object) -> None:
    with pytest.raises(TypeError, match="seed: expected an integer"):
        philox.as_int64(seed)  # type: ignore[arg-type]
