"""GPT-2's weights, as transformers and nanoGPT save them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastar.convert._tensors import WRAPPERS, Tensors
from fastar.models import Transformer

# (theirs, ours) of a block's products.
_PRODUCTS = (
    ("attn.c_attn", "attention.qkv"),
    ("attn.c_proj", "attention.proj"),
    ("mlp.c_fc", "widen"),
    ("mlp.c_proj", "narrow"),
)
# The causal mask, which both projects keep as a buffer.
_MASK = r"h\.\d+\.attn\.(bias|masked_bias)"


def gpt2(
    tensors: Mapping[str, Tensor], heads: int, *, bos: int | None = None, ignore: Sequence[str] = ()
) -> Transformer:
    """A Transformer with the weights of a GPT-2: ``gpt2(GPT2LMHeadModel.from_pretrained("gpt2").state_dict(), 12)``.

    Weights [in, out], as transformers' Conv1D has them, come with GELU by tanh; weights [out, in], as nanoGPT has them,
    with the exact GELU and with or without biases. Which of them it is shows in the first attention's shape.

    Args:
        tensors: the state dict, of the bare network or of the one with its output layer.
        heads: attention heads, which no shape tells.
        bos: the symbol that stands before a text, 50256 for the published weights; None: position 0 is given.
        ignore: beginnings of names that do not count.
    """
    left = Tensors(tensors, ignore, (*WRAPPERS, "transformer."))
    left.drop(_MASK)
    layers = left.count("h.{}.")
    if layers == 0:
        raise ValueError("tensors: expected layers called h.0, got none")
    state = {"wte.weight": left.take("wte.weight", "vocabulary", "width")}
    vocabulary, width = state["wte.weight"].shape
    state["wpe.0.weight"] = left.take("wpe.weight", "context", width)
    transposed = left.shape("h.0.attn.c_attn.weight") == (width, 3 * width)
    for number in range(layers):
        for theirs, ours in (("ln_1", "norm_1"), ("ln_2", "norm_2")):
            _norm(left, state, f"h.{number}.{theirs}", f"body.{number}.{ours}", width)
        for theirs, ours in _PRODUCTS:
            weight = left.take(f"h.{number}.{theirs}.weight", "rows", "columns")
            state[f"body.{number}.{ours}.weight"] = weight.T.contiguous() if transposed else weight
            bias = left.optional(f"h.{number}.{theirs}.bias", "outputs")
            if bias is not None:
                state[f"body.{number}.{ours}.bias"] = bias
    _norm(left, state, "ln_f", f"body.{layers}", width)
    head = left.optional("lm_head.weight", vocabulary, width)
    if head is not None and not torch.equal(head, state["wte.weight"]):
        state["head.weight"] = head
    left.finish()
    model = Transformer(
        vocabulary,
        len(state["wpe.0.weight"]),
        width,
        layers,
        heads,
        bos,
        inner=len(state["body.0.widen.weight"]),
        activation="gelu_tanh" if transposed else "gelu",
        bias=f"body.{layers}.bias" in state,
        tied="head.weight" not in state,
        dtype=state["wte.weight"].dtype,
    )
    model.load_state_dict(state)
    return model.eval()


def _norm(left: Tensors, state: dict[str, Tensor], theirs: str, ours: str, width: int) -> None:
    state[f"{ours}.weight"] = left.take(f"{theirs}.weight", width)
    bias = left.optional(f"{theirs}.bias", width)
    if bias is not None:
        state[f"{ours}.bias"] = bias
