"""A masked network with its masks, saved as other projects do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import convert
from fastar.models import MADE

D, HIDDEN, ORDER = 5, 16, [3, 0, 4, 1, 2]


def saved(params: int, layout: str = "chunked") -> dict[str, Tensor]:
    """What a stack of masked layers with activations in between saves: layers 0, 2 and 4, masks as floats."""
    generator = torch.Generator().manual_seed(0)
    place = torch.tensor(ORDER).argsort()
    degrees = [place, *(torch.randint(0, D - 1, (HIDDEN,), generator=generator) for _ in range(2))]
    out = place.repeat(params) if layout == "chunked" else place.repeat_interleave(params)
    masks = [after[:, None] >= before for before, after in itertools.pairwise(degrees)]
    masks.append(out[:, None] > degrees[-1])
    tensors = {}
    for number, mask in enumerate(masks):
        tensors[f"net.{2 * number}.weight"] = torch.randn(mask.shape, generator=generator)
        tensors[f"net.{2 * number}.bias"] = torch.randn(len(mask), generator=generator)
        tensors[f"net.{2 * number}.mask"] = mask.float()
    return tensors


def applied(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    for number in (0, 2, 4):
        weight, mask = tensors[f"net.{number}.weight"], tensors[f"net.{number}.mask"]
        x = F.linear(x if number == 0 else F.relu(x), weight * mask, tensors[f"net.{number}.bias"])
    return x


@pytest.mark.parametrize(("params", "layout"), [(1, "chunked"), (3, "chunked"), (3, "feature")])
def test_the_network_and_its_order(params: int, layout: str) -> None:
    tensors = saved(params, layout)
    model = convert.made(tensors, params=params, layout=layout)
    assert model.order.tolist() == ORDER
    x = torch.randn(4, D)
    expected = applied(tensors, x)
    expected = expected.view(4, params, D).transpose(1, 2) if layout == "chunked" else expected.view(4, D, params)
    torch.testing.assert_close(model(x), expected)


def test_it_samples_and_is_saved_with_its_masks(tmp_path: Path) -> None:
    tensors = {f"module.{name}": one for name, one in saved(1).items()}
    del tensors["module.net.2.bias"]
    model = convert.made({**tensors, "permutation": torch.tensor(ORDER)})
    drawn = model.sample(64, seed=1, return_info=True)
    torch.testing.assert_close(drawn.log_prob.float(), model.log_prob(drawn.values), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = MADE.from_pretrained(tmp_path)
    x = drawn.values
    assert torch.equal(again(x), model(x))
    assert torch.equal(again.sample(8, seed=5), model.sample(8, seed=5))


def test_what_does_not_fit_is_named() -> None:
    tensors = saved(1)
    with pytest.raises(ValueError, match=r"expected layers with a weight and a mask, got net.0.weight"):
        convert.made({"net.0.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="no order of the dimensions obeys these masks"):
        convert.made({**tensors, "net.0.mask": torch.ones(HIDDEN, D), "net.4.mask": torch.ones(D, HIDDEN)})
    with pytest.raises(ValueError, match=r"'net.0.mask'.*: expected shape \[16, 5\], got \[5, 16\]"):
        convert.made({**tensors, "net.0.mask": torch.ones(D, HIDDEN)})
    with pytest.raises(ValueError, match=r"no use for skip_layer.weight"):
        convert.made({**tensors, "skip_layer.weight": torch.ones(D, D)})
    wide = {"net.4.weight": torch.ones(7, HIDDEN), "net.4.mask": torch.ones(7, HIDDEN), "net.4.bias": torch.ones(7)}
    with pytest.raises(ValueError, match="7 outputs are no multiple of 5 inputs"):
        convert.made({**tensors, **wide})
