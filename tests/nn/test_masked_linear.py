"""MaskedLinear: compatibility with torch.nn.Linear, masks as data, moving, copying, and errors that change nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fastar.nn import MaskedLinear
from fastar.reference.masked_linear import mask_from_degrees

INS, OUTS = torch.tensor([3, 1, 2, 4, 1, 5]), torch.tensor([2, 5, 1, 3])
MASK = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]) > 0


def layer_of(kind: str) -> MaskedLinear:
    if kind == "degrees":
        return MaskedLinear(6, 4, in_degrees=INS, out_degrees=OUTS)
    return MaskedLinear(6, 4, mask=MASK) if kind == "mask" else MaskedLinear(6, 4)


def expected(layer: MaskedLinear, x: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight * mask, layer.bias)


@pytest.mark.parametrize("kind", ["none", "degrees", "mask"])
def test_loads_and_is_loaded_by_its_twin(kind: str) -> None:
    layer, twin = layer_of(kind), nn.Linear(6, 4)
    layer.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(layer.weight, twin.weight)
    state = layer.state_dict()
    assert ("mask" in state) == (kind == "mask")
    state.pop("mask", None)
    twin.load_state_dict(state, strict=True)
    assert torch.equal(
        layer.dense_mask(), {"none": torch.ones(4, 6) > 0, "degrees": mask_from_degrees(INS, OUTS), "mask": MASK}[kind]
    )


def test_initialised_as_its_twin() -> None:
    torch.manual_seed(5)
    layer = MaskedLinear(6, 4, in_degrees=INS, out_degrees=OUTS)
    torch.manual_seed(5)
    twin = nn.Linear(6, 4)
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


def test_strict_degrees() -> None:
    layer = MaskedLinear(6, 4, in_degrees=INS, out_degrees=OUTS, strict=True)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), expected(layer, x, OUTS[:, None] > INS))
    assert torch.equal(layer.dense_mask(), OUTS[:, None] > INS)


def test_no_mask_is_stored_for_degrees() -> None:
    layer = layer_of("degrees")
    assert all(t.numel() < 24 for t in layer.plan if t is not None)
    assert layer.mask is None


def test_a_mask_travels_with_the_weights() -> None:
    source, x = layer_of("mask"), torch.randn(3, 6)
    for target in (layer_of("none"), layer_of("degrees"), MaskedLinear(6, 4, mask=~MASK)):
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(target(x), source(x))
        assert torch.equal(target.dense_mask(), MASK)


def test_a_mask_of_another_shape_is_refused_on_load() -> None:
    state = {**layer_of("mask").state_dict(), "mask": torch.ones(6, 4) > 0}
    layer = layer_of("degrees")
    with pytest.raises(RuntimeError, match=r"mask: expected shape \[4, 6\], got \[6, 4\]"):
        layer.load_state_dict(state)
    assert torch.equal(layer.dense_mask(), mask_from_degrees(INS, OUTS))


def test_set_mask_and_set_degrees() -> None:
    layer, x = layer_of("none"), torch.randn(3, 6)
    layer.set_mask(MASK)
    torch.testing.assert_close(layer(x), expected(layer, x, MASK))
    layer.set_degrees(INS, OUTS, strict=True)
    torch.testing.assert_close(layer(x), expected(layer, x, OUTS[:, None] > INS))
    assert "mask" not in layer.state_dict()
    layer.set_mask(None)
    torch.testing.assert_close(layer(x), expected(layer, x, torch.ones(4, 6)))


def test_a_refused_mask_changes_nothing() -> None:
    layer, x = layer_of("degrees"), torch.randn(3, 6)
    before, plan = layer(x), layer.plan
    for bad in (torch.ones(6, 4) > 0, torch.ones(4, 6)):
        with pytest.raises((TypeError, ValueError), match="mask: expected"):
            layer.set_mask(bad)
    with pytest.raises(ValueError, match="out_degrees: expected shape"):
        layer.set_degrees(INS, INS)
    assert layer.plan is plan
    assert torch.equal(layer(x), before)


def test_later_changes_of_the_callers_mask_do_not_reach_the_layer() -> None:
    mask = MASK.clone()
    layer, x = MaskedLinear(6, 4, mask=mask), torch.randn(3, 6)
    before = layer(x)
    mask.fill_(True)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", ["degrees", "mask"])
def test_copies_and_pickles(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(3, 6)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("kind", ["degrees", "mask"])
def test_built_on_the_meta_device(kind: str) -> None:
    source, x = layer_of(kind), torch.randn(3, 6)
    keywords = {"mask": MASK} if kind == "mask" else {"in_degrees": INS, "out_degrees": OUTS}
    layer = MaskedLinear(6, 4, device="meta", **keywords)
    assert layer(torch.empty(3, 6, device="meta")).shape == (3, 4)
    layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(x), source(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = layer_of("degrees").to(dtype)
    assert layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype
    assert MaskedLinear(6, 4, dtype=dtype).weight.dtype == dtype


def test_the_mask_applies_to_a_reparametrised_weight() -> None:
    layer = nn.utils.parametrizations.weight_norm(layer_of("mask"))
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), expected(layer, x, MASK))
    layer(x).sum().backward()
    gradient = layer.parametrizations.weight.original1.grad
    assert gradient is not None
    assert gradient.isfinite().all()


def test_compiles_whole_and_exports() -> None:
    model = nn.Sequential(MaskedLinear(6, 4, in_degrees=INS, out_degrees=OUTS, activation="relu"), nn.Linear(4, 2))
    x = torch.randn(3, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_repr_names_the_mask() -> None:
    assert "mask=degrees" in repr(layer_of("degrees"))
    assert "mask=given" in repr(layer_of("mask"))
    assert "activation=relu" in repr(MaskedLinear(2, 2, activation="relu"))


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 4), "in_features"), ((4, -1), "out_features"), ((2.5, 4), "in_features")]
)
def test_bad_sizes(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{message}: expected a positive integer"):
        MaskedLinear(*arguments)


def test_bad_activation() -> None:
    with pytest.raises(ValueError, match="activation: expected one of"):
        MaskedLinear(2, 2, activation="swish")
