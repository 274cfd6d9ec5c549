"""GPT-2's weights in either layout against the published formula, and against transformers where it is installed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import convert

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 13, 9, 12, 2, 3


def weights(transposed: bool, bias: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    tensors = {"transformer.wte.weight": normal(VOCABULARY, WIDTH), "transformer.wpe.weight": normal(CONTEXT, WIDTH)}
    for layer in range(LAYERS):
        path = f"transformer.h.{layer}"
        for name, outputs, inputs in (
            ("attn.c_attn", 3 * WIDTH, WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):
            tensors[f"{path}.{name}.weight"] = normal(inputs, outputs) if transposed else normal(outputs, inputs)
            if bias:
                tensors[f"{path}.{name}.bias"] = normal(outputs)
        tensors[f"{path}.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT).tril()
    for name in [*(f"h.{layer}.ln_{one}" for layer in range(LAYERS) for one in (1, 2)), "ln_f"]:
        tensors[f"transformer.{name}.weight"] = 1 + normal(WIDTH)
        if bias:
            tensors[f"transformer.{name}.bias"] = normal(WIDTH)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors


def published(tensors: dict[str, Tensor], x: Tensor, transposed: bool) -> Tensor:
    """GPT-2's logits, one head at a time."""

    def linear(y: Tensor, name: str) -> Tensor:
        weight = tensors[f"transformer.{name}.weight"]
        y = y @ weight if transposed else y @ weight.T
        bias = tensors.get(f"transformer.{name}.bias")
        return y if bias is None else y + bias

    def norm(y: Tensor, name: str) -> Tensor:
        bias = tensors.get(f"transformer.{name}.bias")
        return F.layer_norm(y, [WIDTH], tensors[f"transformer.{name}.weight"], bias)

    T, size = x.shape[1], WIDTH // HEADS
    y = tensors["transformer.wte.weight"][x] + tensors["transformer.wpe.weight"][:T]
    for layer in range(LAYERS):
        q, k, v = linear(norm(y, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(WIDTH, 2)
        seen = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            seen.append(scores.softmax(-1) @ v[..., part])
        y = y + linear(torch.cat(seen, -1), f"h.{layer}.attn.c_proj")
        inner = linear(norm(y, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        inner = F.gelu(inner, approximate="tanh" if transposed else "none")
        y = y + linear(inner, f"h.{layer}.mlp.c_proj")
    return norm(y, "ln_f") @ tensors["lm_head.weight"].T


@pytest.mark.parametrize(("transposed", "bias"), [(True, True), (False, True), (False, False)])
def test_either_layout_follows_the_published_formula(transposed: bool, bias: bool) -> None:
    tensors = weights(transposed, bias)
    x = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    model = convert.gpt2(tensors, HEADS)
    torch.testing.assert_close(model.next_logits(x), published(tensors, x, transposed), rtol=1e-4, atol=1e-4)
    assert model.to_config()["tied"]


def test_wrappers_an_untied_head_and_a_start_symbol() -> None:
    tensors = weights(True, True)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    x = torch.randint(VOCABULARY, (1, 5))
    model = convert.gpt2({f"_orig_mod.{name}": one for name, one in tensors.items()}, HEADS, bos=4)
    assert not model.to_config()["tied"]
    before = torch.cat([torch.tensor([[4]]), x[:, :-1]], 1)
    torch.testing.assert_close(model(x), published(tensors, before, True), rtol=1e-4, atol=1e-4)
    drawn = model.sample(3, length=CONTEXT, seed=0, return_info=True)
    torch.testing.assert_close(drawn.log_prob.float(), model.log_prob(drawn.values), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    tensors = weights(True, True)
    with pytest.raises(ValueError, match="no use for extra"):
        convert.gpt2({**tensors, "extra": torch.ones(1)}, HEADS)
    assert convert.gpt2({**tensors, "extra": torch.ones(1)}, HEADS, ignore=["extra"]).vocabulary == VOCABULARY
    cut = {name: one for name, one in tensors.items() if "h.1.ln_2.weight" not in name}
    with pytest.raises(ValueError, match=r"expected one called 'h.1.ln_2.weight'"):
        convert.gpt2(cut, HEADS)
    with pytest.raises(ValueError, match=r"'wpe.weight'.*: expected shape \[context, 12\], got \[9, 11\]"):
        convert.gpt2({**tensors, "transformer.wpe.weight": torch.ones(9, 11)}, HEADS)
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 12, got 5"):
        convert.gpt2(tensors, 5)
    with pytest.raises(TypeError, match=r"tensors\['wte'\]: expected a tensor, got list"):
        convert.gpt2({"wte": [1]}, HEADS)  # type: ignore[dict-item]


def test_transformers_own_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    x = torch.randint(VOCABULARY, (2, CONTEXT))
    with torch.no_grad():
        torch.testing.assert_close(
            convert.gpt2(theirs.state_dict(), HEADS).next_logits(x), theirs(x).logits, rtol=1e-4, atol=1e-4
        )
