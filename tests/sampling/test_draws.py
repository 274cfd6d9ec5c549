"""The draw rules, one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastar.sampling import draws, mixtures
from fastar.sampling.categorical import pick, probabilities
from fastar.sampling.draws import Options, Support
from fastar.sampling.instructions import Head

BERNOULLI = Head("bernoulli")
CATEGORICAL = Head("categorical", levels=4)
PIXEL = Head("logistic", levels=6, components=3, channels=3, low=-1.0, high=1.0, min_log_scale=-4.0)


def _grid(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n


def _categorical(p: list[float], u: float, options: Options = draws.PLAIN, levels: list[bool] | None = None) -> int:
    support = None if levels is None else Support(levels=torch.tensor([levels]))
    logits = torch.tensor([p], dtype=torch.float64).log()
    return int(draws.draw(CATEGORICAL, logits, torch.tensor([[u]], dtype=torch.float64), options, support))


def test_bernoulli_is_one_below_p() -> None:
    logit = torch.full((2, 1), math.log(0.3 / 0.7), dtype=torch.float64)
    u = torch.tensor([[0.2999], [0.3001]], dtype=torch.float64)
    assert draws.draw(BERNOULLI, logit, u)[:, 0].tolist() == [1, 0]


def test_categorical_takes_the_first_level_beyond_u() -> None:
    p = [0.1, 0.0, 0.4, 0.5]
    assert [_categorical(p, u) for u in (0.05, 0.1001, 0.4999, 0.5001, 0.9999)] == [0, 2, 2, 3, 3]


def test_rounding_that_leaves_nothing_gives_the_last_level_with_probability() -> None:
    p = torch.tensor([[0.5, 0.25, 0.0]], dtype=torch.float64)
    assert int(pick(p, torch.tensor([0.99], dtype=torch.float64))) == 1


def test_greedy_takes_the_largest_and_the_lowest_of_equals() -> None:
    assert _categorical([0.2, 0.4, 0.4, 0.0], 0.99, Options(greedy=True)) == 1
    assert _categorical([0.2, 0.4, 0.3, 0.1], 0.99, Options(greedy=True), [True, False, False, True]) == 0
    half = torch.zeros(1, 1)
    assert int(draws.draw(BERNOULLI, half, half.double(), Options(greedy=True))) == 0


def test_top_k_keeps_lower_indices_among_equals() -> None:
    p = probabilities(torch.tensor([[0.3, 0.3, 0.3, 0.1]]).log(), top_k=2)
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.51, 2), (0.8, 2), (0.85, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: int) -> None:
    # Sums of these are exact in binary, so that a set reaches p exactly.
    p = probabilities(torch.tensor([[0.0625, 0.5, 0.125, 0.3125]], dtype=torch.float64).log(), top_p=top_p)
    assert int((p > 0).sum()) == kept
    assert abs(float(p.sum()) - 1) < 1e-12


def test_support_acts_first_and_temperature_before_top_p() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    levels = torch.tensor([[True, True, True, False]])
    p = probabilities(logits, levels, temperature=0.5, top_k=2)
    expected = torch.softmax(torch.tensor([2.0, 4.0], dtype=torch.float64), 0)
    torch.testing.assert_close(p[0, 1:3], expected)
    assert p[0, 0] == p[0, 3] == 0


def test_support_without_probability_is_an_error() -> None:
    with pytest.raises(draws.SamplingError, match=r"row 0: .*probability 0"):
        _categorical([0.0, 1.0, 0.0, 0.0], 0.5, levels=[True, False, False, False])


@pytest.mark.parametrize("kind", ["normal", "gaussian", "laplace", "logistic"])
def test_continuous_draws_follow_the_density(kind: str) -> None:
    head = Head(kind, components=1 if kind == "normal" else 3)
    params = torch.randn(1, head.params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    density = draws.log_prob(head, params.expand(len(x), -1), x[:, None], integer=False).exp()
    cdf = torch.cumulative_trapezoid(density, x)
    assert abs(float(cdf[-1]) - 1) < 1e-4
    n = 400
    # Every pair of (component, value) quantiles: the mean of the value's CDF over them is that of a uniform number.
    u = torch.stack(torch.meshgrid(_grid(n)[:, 0], _grid(n)[:, 0], indexing="ij"), 2).view(-1, 2)
    value = draws.draw(head, params.expand(len(u), -1), u[:, -head.draws :], integer=False)[:, 0]
    at = cdf[((value - x[0]) / (x[1] - x[0])).long().clamp(0, len(cdf) - 1)]
    for moment in (1, 2, 3):
        assert abs(float((at**moment).mean()) - 1 / (moment + 1)) < 5e-3


def test_temperature_divides_logits_and_multiplies_scales() -> None:
    head = Head("gaussian", components=2)
    params = torch.tensor([[1.0, 3.0, -1.0, 2.0, 0.5, -0.5]], dtype=torch.float64)
    hot = torch.tensor([[0.5, 1.5, -1.0, 2.0, 0.5 + math.log(2), -0.5 + math.log(2)]], dtype=torch.float64)
    u = torch.rand(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = draws.draw(head, params.expand(100, -1), u, Options(temperature=2.0), integer=False)
    torch.testing.assert_close(one, draws.draw(head, hot.expand(100, -1), u, integer=False))


def test_greedy_on_a_mixture_is_the_mean_of_the_likeliest_component() -> None:
    head = Head("laplace", components=2)
    params = torch.tensor([[1.0, 3.0, -1.0, 2.0, 0.5, -0.5]], dtype=torch.float64)
    assert float(draws.draw(head, params, torch.full((1, 2), 0.9), Options(greedy=True), integer=False)) == 2.0


def _pixel_params(n: int) -> Tensor:
    return torch.randn(1, PIXEL.params, generator=torch.Generator().manual_seed(4), dtype=torch.float64).expand(n, -1)


def test_discretised_logistics_sum_to_one_over_all_pixels() -> None:
    pixels = torch.cartesian_prod(*[torch.arange(6, dtype=torch.float64)] * 3)
    total = draws.log_prob(PIXEL, _pixel_params(len(pixels)), pixels).exp().sum()
    assert abs(float(total) - 1) < 1e-9


def test_discretised_draws_follow_log_prob() -> None:
    n = 40_000
    u = torch.rand(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    drawn = draws.draw(PIXEL, _pixel_params(n), u)
    pixels = torch.cartesian_prod(*[torch.arange(6, dtype=torch.float64)] * 3)
    p = draws.log_prob(PIXEL, _pixel_params(len(pixels)), pixels).exp()
    base = torch.tensor([36.0, 6.0, 1.0], dtype=torch.float64)
    counts = torch.bincount((drawn @ base).long(), minlength=216).double()
    common = p * n > 10
    statistic = float(((counts - p * n)[common] ** 2 / (p * n)[common]).sum())
    assert statistic < int(common.sum()) + 5 * (2 * int(common.sum())) ** 0.5


def test_the_branch_puts_a_density_in_place_of_a_tiny_difference() -> None:
    head = Head("logistic", levels=256, low=-1.0, high=1.0, branch=1e-5)
    params = torch.tensor([[0.0, -0.9, -6.0]], dtype=torch.float64)
    z = (1.0 * 2 / 255 * 200 - 1 + 0.9) * math.exp(6.0)
    density = -z - 2 * math.log1p(math.exp(-z)) + 6.0 - math.log(127.5)
    assert abs(float(draws.log_prob(head, params, torch.tensor([[200.0]]))) - density) < 1e-9
    near = torch.tensor([[13.0]])
    plain = Head("logistic", levels=256, low=-1.0, high=1.0)
    assert float(draws.log_prob(head, params, near)) == float(draws.log_prob(plain, params, near))


@pytest.mark.parametrize("kind", ["normal", "gaussian", "laplace", "logistic"])
def test_support_confines_a_continuous_law(kind: str) -> None:
    head = Head(kind, components=1 if kind == "normal" else 2)
    generator = torch.Generator().manual_seed(2)
    params = torch.randn(1, head.params, generator=generator, dtype=torch.float64).expand(4000, -1)
    u = torch.rand(4000, head.draws, generator=generator, dtype=torch.float64)
    low, high = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[1.1]], dtype=torch.float64)
    x = draws.draw(head, params, u, support=Support(low=low, high=high), integer=False)[:, 0]
    assert float(x.min()) >= 0.3
    assert float(x.max()) <= 1.1
    grid = torch.linspace(0.3, 1.1, 2001, dtype=torch.float64)
    density = draws.log_prob(head, params[:1].expand(2001, -1), grid[:, None], integer=False).exp()
    cdf = torch.cumulative_trapezoid(density, grid) / torch.trapezoid(density, grid)
    at = cdf[((x - 0.3) / 0.8 * 2000).long().clamp(0, 1999)].sort().values
    # Kolmogorov's statistic: 1.95 / sqrt(n) is exceeded by chance once in a thousand.
    assert float((at - _grid(4000)[:, 0]).abs().max()) < 1.95 / 4000**0.5 + 1e-3


@pytest.mark.parametrize("far", [-80.0, 80.0])
def test_support_in_a_tail_without_probability_stays_inside(far: float) -> None:
    head = Head("normal")
    params, u = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[0.01], [0.5], [0.99]], dtype=torch.float64)
    low, high = torch.tensor([[far - 1]], dtype=torch.float64), torch.tensor([[far + 1]], dtype=torch.float64)
    x = draws.draw(head, params, u, support=Support(low=low, high=high), integer=False)
    assert bool(((x >= far - 1) & (x <= far + 1)).all())


def test_support_confines_levels_of_a_logistic_exactly() -> None:
    head = Head("logistic", levels=8, components=2, low=-1.0, high=1.0)
    n = 20_000
    generator = torch.Generator().manual_seed(3)
    params = torch.randn(1, head.params, generator=generator, dtype=torch.float64)
    u = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    low, high = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[5.0]], dtype=torch.float64)
    drawn = draws.draw(head, params.expand(n, -1), u, support=Support(low=low, high=high))[:, 0].long()
    law = draws.log_prob(head, params.expand(8, -1), torch.arange(8.0)[:, None]).exp()
    law[[0, 1, 6, 7]] = 0
    law = law / law.sum()
    counts = torch.bincount(drawn, minlength=8).double()
    inside = slice(2, 6)
    assert int(counts[inside].sum()) == n
    assert float(((counts - law * n)[inside] ** 2 / (law * n)[inside]).sum()) < 3 + 5 * 6**0.5


def test_log_scales_are_raised_to_their_least() -> None:
    _, _, log_scales, _ = mixtures.split(PIXEL, torch.full((1, PIXEL.params), -9.0, dtype=torch.float64))
    assert float(log_scales.min()) == -4.0


def test_nan_parameters_are_an_error() -> None:
    with pytest.raises(draws.SamplingError, match=r"row 1: .*NaN"):
        draws.draw(CATEGORICAL, torch.tensor([[0.0] * 4, [0.0, math.nan, 0.0, 0.0]]), torch.full((2, 1), 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive"),
        ({"temperature": math.inf}, "temperature: expected a positive finite"),
        ({"top_k": 0}, "top_k: expected a positive integer"),
        ({"top_p": 0.0}, "top_p: expected a number in"),
        ({"top_p": 1.5}, "top_p: expected a number in"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)  # type: ignore[arg-type]


def test_top_k_on_a_continuous_head_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k: the head gaussian"):
        Options(top_k=3).check(Head("gaussian"))
