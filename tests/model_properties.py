"""What every model has to be, whatever its family: each function fails with what it found."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastar import models
from fastar.models import Model
from fastar.models._images import ImageModel
from fastar.models.orderless import Orderless
from fastar.sampling import SampleResult


def randomise(model: Model, size: float = 1.0, seed: int = 0) -> Model:
    """Weights and biases far from the small ones at the start, so that what should matter does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p.shape[-1] if p.dim() > 1 else 4
            p.copy_(torch.randn(p.shape, generator=generator) * (size / math.sqrt(fan_in)))
    return model.eval()


def every_x(shape: Sequence[int], levels: int) -> Tensor:
    """All levels ** numel of them, int64 [N, *shape]."""
    numel = math.prod(shape)
    return torch.tensor(list(itertools.product(range(levels), repeat=numel))).view(-1, *shape)


def raster(shape: Sequence[int]) -> Tensor:
    """The position at which each number of an image [C, H, W] is drawn, a pixel's colours one after the other."""
    C, H, W = shape
    return torch.arange(C * H * W).view(H, W, C).permute(2, 0, 1)


def _params(model: Model, x: Tensor, cond: Any) -> Tensor:
    params = model(x) if cond is None else model(x, cond)
    return params.movedim(model.params_dim, -1).flatten(1, -2)


def assert_autoregressive(
    model: Model, x: Tensor, place: Tensor, params_place: Tensor | None = None, cond: Any = None, dense: bool = True
) -> None:
    """The parameters of position t depend on what comes before t, by perturbation and where x is real by gradient.

    place has an x's shape and says at which position each number is drawn; params_place says it of the parameters,
    in an x's shape unless positions hold several numbers. `dense`: the last position depends on everything earlier.
    """
    place = place.flatten()
    where = place if params_place is None else params_place.flatten()
    levels = model.distribution.levels
    model.eval()
    with torch.no_grad():
        before = _params(model, x, cond)
        for d, t in enumerate(place.tolist()):
            changed = x.clone()
            flat = changed.view(len(x), -1)
            flat[:, d] = flat[:, d] + 0.25 if levels is None else (flat[:, d] + 1) % levels
            moved = (_params(model, changed, cond) != before).any(0).any(1)
            assert not moved[where <= t].any(), f"position {t} reaches parameters of positions up to its own"
            if dense and t < int(where.max()):
                assert moved[where == where.max()].any(), f"position {t} does not reach the last one"
    if levels in (None, 2):
        real = x.to(model.dtype).requires_grad_()
        out = _params(model, real, cond)
        for t in where.unique().tolist():
            (grad,) = torch.autograd.grad(out[:, where == t].sum(), real, retain_graph=True, allow_unused=True)
            if grad is not None:
                assert (grad.flatten(1)[:, place >= t] == 0).all(), f"position {t} has a gradient to later inputs"


def assert_sums_to_one(model: Model, shape: Sequence[int], cond: Any = None) -> Tensor:
    """The probabilities of all x; returns the logarithms."""
    levels = model.distribution.levels
    assert levels is not None
    x = every_x(shape, levels)
    with torch.no_grad():
        log_p = model.log_prob(x, None if cond is None else cond.expand(len(x), *cond.shape[1:])).double()
    assert log_p.shape == (len(x),)
    assert math.isclose(float(log_p.exp().sum()), 1.0, abs_tol=2e-5), f"sum {float(log_p.exp().sum())}"
    return log_p


def images(model: ImageModel, n: int = 5) -> Tensor:
    """n random images of the model's shape and levels."""
    return torch.randint(0, model.distribution.levels or 2, (n, *model.shape))


def index_of(values: Tensor, levels: int) -> Tensor:
    """The row of each of `values` in `every_x`."""
    flat = values.flatten(1)
    weights = levels ** torch.arange(flat.shape[1] - 1, -1, -1)
    return (flat * weights).sum(1)


def assert_frequencies(found: Tensor, p: Tensor) -> None:
    """Chi-squared of indices against probabilities, rare ones taken together; fails at about one in a million."""
    n = len(found)
    count = torch.bincount(found, minlength=len(p)).double()
    rare = p * n < 5
    expected = torch.cat([p[~rare] * n, (p[rare].sum() * n)[None]])
    observed = torch.cat([count[~rare], count[rare].sum()[None]])
    if expected[-1] < 5:
        assert observed[-1] <= expected[-1] + 5 * math.sqrt(float(expected[-1])) + 8, "too many rare samples"
        expected, observed = expected[:-1], observed[:-1]
    chi = float(((observed - expected) ** 2 / expected).sum())
    freedom = max(1, len(expected) - 1)
    # Wilson and Hilferty: the cube root of chi-squared over its degrees of freedom is nearly normal.
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 4.8, f"chi-squared {chi:.1f} for {freedom} degrees of freedom (z = {z:.1f})"


def assert_samples_follow(model: Model, shape: Sequence[int], n: int = 4000, seed: int = 11, **options: Any) -> None:
    """Frequencies of samples against log_prob, and the sampler's log-probabilities against the model's."""
    cond = options.pop("cond", None)
    log_p = assert_sums_to_one(model, shape, cond)
    levels = model.distribution.levels
    assert levels is not None
    expanded = {} if cond is None else {"cond": cond.expand(n, *cond.shape[1:])}
    values = model.sample(n, seed=seed, **expanded, **options)
    assert isinstance(values, Tensor)
    assert values.shape == (n, *shape)
    assert_frequencies(index_of(values, levels), log_p.exp())
    if cond is not None:
        options["cond"] = cond.expand(64, *cond.shape[1:])
    assert_sampler_agrees(model, seed=seed, **options)


def assert_density(model: Model, first: int | None = None, n: int = 8000, seed: int = 3, **options: Any) -> None:
    """The density of two numbers integrates to one, and samples fill the plane's cells as it says.

    `first` is the number that is drawn first: with it given, the other one follows the conditional density.
    """
    reach, fine, coarse = 12.0, 480, 24
    axis = (torch.arange(fine) + 0.5) * (2 * reach / fine) - reach
    with torch.no_grad():
        p = model.log_prob(torch.cartesian_prod(axis, axis)).double().exp() * (2 * reach / fine) ** 2
    assert math.isclose(float(p.sum()), 1, abs_tol=2e-3), f"integral {float(p.sum())}"
    cells = p.view(coarse, fine // coarse, coarse, fine // coarse).sum((1, 3)).flatten()
    values = model.sample(n, seed=seed, **options)
    assert isinstance(values, Tensor)
    cell = ((values + reach) * (coarse / (2 * reach))).long().clamp(0, coarse - 1)
    assert_frequencies(cell[:, 0] * coarse + cell[:, 1], cells / cells.sum())
    if first is None:
        return
    line = torch.full((fine, 2), 0.3)
    line[:, 1 - first] = axis
    with torch.no_grad():
        p = model.log_prob(line).double().exp() * (2 * reach / fine)
    given = torch.full((n, 2), torch.nan)
    given[:, first] = 0.3
    result = model.sample(n, seed=seed, given=given, return_info=True, **options)
    assert isinstance(result, SampleResult)
    torch.testing.assert_close(result.log_weight, p.sum().log().expand(n), rtol=2e-3, atol=2e-3)
    cell = ((result.values[:, 1 - first] + reach) * (coarse / (2 * reach))).long().clamp(0, coarse - 1)
    cells = p.view(coarse, fine // coarse).sum(1)
    assert_frequencies(cell, cells / cells.sum())


def assert_sampler_agrees(model: Model, n: int = 64, tolerance: float = 2e-5, **options: Any) -> SampleResult:
    """log p of drawn samples equals what the sampler summed up; the same seed gives the same samples in parts."""
    result = model.sample(n, return_info=True, **options)
    assert isinstance(result, SampleResult)
    with torch.no_grad():
        log_p = model.log_prob(result.values, options.get("cond"))
    scale = max(1.0, float(log_p.abs().max()))
    worst = float((log_p.double() - result.log_prob).abs().max())
    assert worst <= tolerance * scale, f"log_prob and the sampler differ by {worst:.2e}"
    return result


def assert_prefix_is_conditioned(model: Model, shape: Sequence[int], place: Tensor, known: int, n: int = 4000) -> None:
    """With the first `known` positions given, the rest follows the exact conditional law.

    With the last one given, which most models can only clamp, it does by its importance weights.
    """
    levels = model.distribution.levels
    assert levels is not None
    x = every_x(shape, levels)
    first = x[int(assert_sums_to_one(model, shape).argmin())]
    given = torch.where(place < known, first, -1)
    result = model.sample(n, seed=3, given=given.expand(n, *shape).clone(), return_info=True)
    assert isinstance(result, SampleResult)
    agrees = ((x == first) | (place >= known)).flatten(1).all(1)
    with torch.no_grad():
        p = torch.where(agrees, model.log_prob(x).double().exp(), 0.0)
    assert_frequencies(index_of(result.values, levels), p / p.sum())
    torch.testing.assert_close(result.log_weight, p.sum().log().expand(n), rtol=1e-4, atol=1e-4)
    if not isinstance(model, Orderless):
        _assert_clamping_is_corrected(model, x, place, n)


def _assert_clamping_is_corrected(model: Model, x: Tensor, place: Tensor, n: int) -> None:
    levels = model.distribution.levels
    assert levels is not None
    with torch.no_grad():
        p = model.log_prob(x).double().exp()
    likely, last = x[int(p.argmax())], place == place.max()
    given = torch.where(last, likely, -1).expand(n, *likely.shape).clone()
    result = model.sample(n, seed=4, given=given, return_info=True)
    assert isinstance(result, SampleResult)
    # Clamped rows are drawn by the law of the rest, and weigh what the clamped numbers then are worth.
    rest = index_of(torch.where(last, 0, x), levels)
    drawn = torch.zeros_like(p).index_add(0, rest, p)[rest]
    joint = torch.where(((x == likely) | ~last).flatten(1).all(1), p, 0.0)
    worth, p = joint / drawn, joint / joint.sum()
    weight = result.log_weight.exp()
    found = torch.zeros_like(p).index_add(0, index_of(result.values, levels), weight) / weight.sum()
    squares = joint * worth
    deviation = ((squares * (1 - 2 * p) + squares.sum() * p**2) / n).sqrt() / joint.sum()
    # What is drawn a few times only is no bell curve; eight more or fewer of it are let pass.
    off = (found - p).abs() - 5 * deviation - 8 * worth / (n * joint.sum())
    assert bool((off < 1e-6).all()), f"clamped samples are off their law by {float(off.max()):.4f} more than chance"


def assert_round_trips(model: Model, x: Tensor, folder: Path, cond: Any = None) -> None:
    """Configuration through JSON, and weights through a checkpoint, bit for bit, in float32 and bfloat16."""
    again = type(model).from_config(json.loads(json.dumps(model.to_config())))
    assert again.to_config() == model.to_config()
    state = model.state_dict()
    assert all(state[name].shape == t.shape for name, t in again.state_dict().items())
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).eval()
        assert type(models.load(folder)) is type(model)
        for name, t in model.state_dict().items():
            assert loaded.state_dict()[name].dtype == t.dtype
            assert torch.equal(loaded.state_dict()[name], t), name
        data = x.to(dtype) if model.distribution.levels is None else x
        with torch.no_grad():
            assert torch.equal(loaded.log_prob(data, cond), model.log_prob(data, cond))
    assert len(list(folder.iterdir())) == 2
    model.float()


def assert_image_model(model: ImageModel, folder: Path) -> None:
    """What a model that draws colour by colour has to be, apart from what it sees."""
    assert_samples_follow(model, model.shape)
    assert_prefix_is_conditioned(model, model.shape, raster(model.shape), 3)
    assert_round_trips(model, images(model), folder)


def assert_class_and_map(by_class: ImageModel, by_both: ImageModel) -> None:
    """Two conditioned models: on one of three classes, and on a class and a map of two channels."""
    assert_samples_follow(by_class, by_class.shape, cond=torch.tensor([1]))
    pair = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 2, *by_both.shape[1:])
    assert_sampler_agrees(by_both, 6, seed=1, cond=pair)
    with pytest.raises(ValueError, match=r"cond: expected classes 0..2, got 0 to 3"):
        by_class.sample(2, cond=torch.tensor([0, 3]))


def assert_refuses_bad_data(model: Model, x: Tensor) -> None:
    """Shapes, values and dtypes that are not the model's, and options that it has not."""
    with pytest.raises(ValueError, match=r"x: expected shape"):
        model(x[0])
    with pytest.raises(ValueError, match=r"x: expected shape"):
        model.log_prob(x[..., None])
    with pytest.raises(TypeError, match=r"x: expected a tensor, got list"):
        model(x.tolist())
    wrong = x.clone()
    at = (0,) * x.dim()
    levels = model.distribution.levels
    if levels is None:
        wrong[at] = float("nan")
    elif wrong.dtype != torch.uint8:
        wrong[at] = levels
    if wrong.dtype != torch.uint8:
        with pytest.raises(ValueError, match=r"x: expected .*; at \[0, .*\] came"):
            model(wrong)
    if model.distribution.is_density:
        with pytest.raises(ValueError, match=r"levels: real data have no bits per dim"):
            model.nll_bits_per_dim(x)
    elif levels is not None and levels > 2:
        with pytest.raises(TypeError, match=r"x: expected dtype int64.*, got float32"):
            model(x.float())
    with pytest.raises(ValueError, match=r"preset: .* not 'nothing'"):
        type(model).preset("nothing")
    with pytest.raises(ValueError, match=r"config: .* has no nonsense"):
        type(model).from_config({"nonsense": 1})
