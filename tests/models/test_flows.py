"""MAF and IAF: both directions, their Jacobians, their scales, and the sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_density,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_sampler_agrees,
    randomise,
)
from torch import Tensor

from fastar.models import IAF, MAF
from fastar.models._affine import SCALES
from fastar.sampling import philox

Flow = MAF | IAF
KINDS = [MAF, IAF]


def _flow(kind: Callable[..., Flow], dim: int = 4, seed: int = 0, **options: object) -> Flow:
    model = kind(dim, [12, 12], 3, **options)
    randomise(model, 0.6, seed)
    for norm in model.norms:
        norm.running_mean.copy_(torch.randn(dim))  # type: ignore[operator, union-attr]
        norm.running_var.copy_(torch.rand(dim) + 0.5)  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("inverted", [False, True])
def test_directions_are_inverse_and_their_jacobian_is_stated(
    kind: Callable[..., Flow], scale: str, inverted: bool
) -> None:
    model = _flow(kind, scale=scale, inverted=inverted, orders="random", batch_norm=True).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        z, log_det = model.transform(x)
        back, log_back = model.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_back, -log_det, rtol=1e-8, atol=1e-8)
    for n in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda row: model.transform(row[None])[0][0], x[n])
        assert isinstance(jacobian, Tensor)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[n], rtol=1e-8, atol=1e-8)
    assert_sampler_agrees(model.float(), 32, tolerance=1e-4, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_have_gradients(kind: Callable[..., Flow]) -> None:
    model = _flow(kind).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    for direction in (model.transform, model.inverse):
        weight = model.layers[1].network.out.weight  # type: ignore[union-attr]
        y, log_det = direction(x)
        (grad,) = torch.autograd.grad(y.sin().sum() + log_det.sum(), weight)  # type: ignore[call-overload]
        step = torch.randn_like(grad) * 1e-6
        found = []
        with torch.no_grad():
            for sign in (1, -1):
                weight += sign * step  # type: ignore[operator]
                y, log_det = direction(x)
                found.append(y.sin().sum() + log_det.sum())
                weight -= sign * step  # type: ignore[operator]
        torch.testing.assert_close((grad * step).sum() * 2, found[0] - found[1], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_density(kind: Callable[..., Flow]) -> None:
    assert_density(_flow(kind, dim=2, orders="random", batch_norm=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_read_what_they_should(kind: Callable[..., Flow]) -> None:
    # One layer: MAF's noise i depends on x up to i, IAF's data i on the noise up to i, in the layer's order.
    order = [2, 0, 3, 1]
    model = kind(4, [16], 1, orders=[order])
    randomise(model, 0.6)
    direction = model.transform if kind is MAF else model.inverse
    x = torch.randn(4)
    jacobian = torch.autograd.functional.jacobian(lambda row: direction(row[None])[0][0], x)
    assert isinstance(jacobian, Tensor)
    place = torch.tensor(order).argsort()
    assert torch.equal(jacobian != 0, place[None, :] <= place[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_samples_are_the_images_of_their_noise(kind: Callable[..., Flow], scale: str) -> None:
    # The noise of dimension i is drawn at position i.
    model = _flow(kind, scale=scale, orders="random", batch_norm=True)
    seeds, rows = torch.full((16,), 9), torch.arange(16)
    u = torch.stack([philox.continuous(seeds, rows, i, 0) for i in range(4)], 1)
    with torch.no_grad():
        expected, _ = model.inverse(torch.special.ndtri(u).float())
    for backend in ("auto", "reference"):
        torch.testing.assert_close(model.sample(16, seed=9, backend=backend), expected, rtol=1e-4, atol=1e-4)


def test_greedy_is_the_image_of_no_noise() -> None:
    for scale in ("exp", "softplus"):
        model = _flow(MAF, scale=scale)
        with torch.no_grad():
            expected = model.inverse(torch.zeros(1, 4))[0]
        torch.testing.assert_close(model.sample(1, greedy=True, seed=0), expected)
        cold = model.sample(1, temperature=1e-4, seed=0)
        torch.testing.assert_close(cold, expected, rtol=1e-2, atol=1e-2)


def test_conditions() -> None:
    for scale in ("exp", "softplus"):
        model = _flow(MAF, cond_dim=3, scale=scale)
        labels, x = torch.arange(3), torch.randn(3, 4)
        torch.testing.assert_close(model.log_prob(x, labels), model.log_prob(x, torch.eye(3)))
        assert not torch.allclose(model.log_prob(x[:1].expand(3, 4), labels)[0], model.log_prob(x, labels)[1])
        assert_sampler_agrees(model, 3, tolerance=1e-4, cond=labels, seed=1)
        with pytest.raises(ValueError, match=r"cond: this MAF needs it"):
            model.log_prob(x)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind: Callable[..., Flow], tmp_path: Path) -> None:
    model = _flow(kind, batch_norm=True, orders="random")
    with torch.no_grad():
        model.save_pretrained(tmp_path)
        x = torch.randn(3, 4)
        assert torch.equal(kind.from_pretrained(tmp_path).eval().log_prob(x), model.log_prob(x))  # type: ignore[attr-defined]
    assert_refuses_bad_data(model, x)
    assert_round_trips(model, x, tmp_path)


def test_batch_norm_learns_moments_and_refuses_to_invert_while_training() -> None:
    model = MAF(3, [8], 2, batch_norm=True)
    x = torch.randn(512, 3) * 2 + 5
    model.train()
    for _ in range(60):
        model.transform(x)
    z, _ = model.eval().transform(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.05)
    model.train()
    for call in (lambda: model.inverse(x), model.lower):
        with pytest.raises(ValueError, match=r"training: batch norm is inverted by its running moments only"):
            call()
    with pytest.raises(ValueError, match=r"x: batch norm needs at least 2 rows"):
        model.transform(x[:1])


def test_parameters_by_formula() -> None:
    D, H, K = 5, 7, 3
    degrees = [k % (D - 1) + 1 for k in range(H)]
    first = sum(d >= i for d in degrees for i in range(1, D + 1))
    middle = sum(b >= a for a in degrees for b in degrees)
    last = 2 * sum(i > d for d in degrees for i in range(1, D + 1))
    assert MAF(D, [H, H], K).num_parameters() == K * (first + middle + last + 2 * H + 2 * D)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"scale: expected one of exp, .*, got 'log'"):
        MAF(3, 8, 2, "log")
    with pytest.raises(ValueError, match=r"orders: expected a permutation for each of 2 layers, got 1"):
        MAF(3, 8, 2, orders=[[0, 1, 2]])
    with pytest.raises(ValueError, match=r"orders: expected reverse, random"):
        MAF(3, 8, 2, orders="sorted")
    with pytest.raises(ValueError, match=r"given: the values of MAF are computed from noise"):
        MAF(3, 8, 2).eval().sample(2, given=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"top_k: the head normal is no choice among levels"):
        MAF(3, 8, 2).eval().sample(2, top_k=3)
    with pytest.raises(TypeError, match=r"x: expected the model's dtype, float32, got float64"):
        MAF(3, 8, 2).transform(torch.zeros(1, 3, dtype=torch.float64))
