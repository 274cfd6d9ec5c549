"""A Transformer of GPT-2's shape: tokens one after another, keys and values of earlier ones kept."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import compiled
from fastar.bench.cases.sampling import _llama
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case, draw, random
from fastar.bench.registry import Absent, Call, Case, Part
from fastar.models import Transformer


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int

    @property
    def weights(self) -> int:
        """Numbers read for a token: every matrix once, of the tables one row."""
        return 12 * self.layers * self.width**2 + self.vocabulary * self.width


GPT2 = Shape(50257, 1024, 768, 12, 12)
TINY = Shape(40, 16, 16, 2, 2)


def make_model(s: Shape) -> Transformer:
    """`fastar.models.Transformer`; the last token of the vocabulary begins a row."""
    model = Transformer(s.vocabulary, s.context, s.width, s.layers, s.heads, bos=s.vocabulary - 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Wide logits: were all symbols about as likely, rounding would decide too many draws of the check.
                parameter.copy_(random(generator, *parameter.shape, scale=5.0 if name == "wte.weight" else 1.0))
            elif name.endswith("bias"):
                parameter.copy_(random(generator, *parameter.shape, scale=0.2))
    return model.eval()


def cached(model: Transformer, s: Shape, dtype: torch.dtype) -> Loop:
    """Keys and values in tensors of their full size; query, key and value in one product."""
    p = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    *blocks, last = (f"body.{i}" for i in range(s.layers + 1))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (s.width,), p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows, length = u.shape[1], len(u)
        kept = u.new_empty(s.layers, 2, rows, s.heads, length, s.width // s.heads, dtype=dtype)
        symbol = torch.full((rows,), s.vocabulary - 1, device=u.device)
        drawn = torch.empty(rows, length, dtype=torch.int64, device=u.device)
        for t in range(length):
            x = functional.embedding(symbol, p["wte.weight"]) + p["wpe.0.weight"][t]
            for (keys, values), block in zip(kept, blocks, strict=True):
                y = linear(norm(x, f"{block}.norm_1"), f"{block}.attention.qkv")
                q, k, v = y.view(rows, 3, s.heads, -1).unbind(1)
                keys[:, :, t], values[:, :, t] = k, v
                mixed = functional.scaled_dot_product_attention(
                    q[:, :, None], keys[:, :, : t + 1], values[:, :, : t + 1]
                )
                x = x + linear(mixed.reshape(rows, -1), f"{block}.attention.proj")
                up = functional.gelu(linear(norm(x, f"{block}.norm_2"), f"{block}.widen"), approximate="tanh")
                x = x + linear(up, f"{block}.narrow")
            symbol = draw(functional.linear(norm(x, last), p["wte.weight"]), u[t])
            drawn[:, t] = symbol
        return drawn

    return loop


def _block(x: Tensor, t: Tensor, heads: int, keys: Tensor, values: Tensor, w: Sequence[Tensor]) -> Tensor:
    norm1, bias1, three, three_bias, mix, mix_bias, norm2, bias2, up, up_bias, down, down_bias = w
    rows, D = x.shape
    y = functional.linear(functional.layer_norm(x, (D,), norm1, bias1), three, three_bias)
    q, k, v = y.view(rows, 3, heads, 1, -1).unbind(1)
    keys.index_copy_(2, t, k)
    values.index_copy_(2, t, v)
    seen = torch.arange(keys.shape[2], device=x.device) <= t
    mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None])
    x = x + functional.linear(mixed.reshape(rows, D), mix, mix_bias)
    hidden = functional.linear(functional.layer_norm(x, (D,), norm2, bias2), up, up_bias)
    return x + functional.linear(functional.gelu(hidden, approximate="tanh"), down, down_bias)


def static(model: Transformer, s: Shape, dtype: torch.dtype, *, compile_parts: bool = False) -> Loop:
    """Whole keys and values seen through a mask, so that every step has the same shapes."""
    p = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    block = compiled(_block) if compile_parts else _block
    parts = ("norm_1", "attention.qkv", "attention.proj", "norm_2", "widen", "narrow")
    layers = [[p[f"body.{i}.{part}.{kind}"] for part in parts for kind in ("weight", "bias")] for i in range(s.layers)]
    last = [p[f"body.{s.layers}.{kind}"] for kind in ("weight", "bias")]

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        rows, length = u.shape[1], len(u)
        kept = u.new_zeros(s.layers, 2, rows, s.heads, length, s.width // s.heads, dtype=dtype)
        places = torch.arange(length, device=u.device)
        symbol = torch.full((rows,), s.vocabulary - 1, device=u.device)
        drawn = torch.empty(rows, length, dtype=torch.int64, device=u.device)
        for t in range(length):
            x = functional.embedding(symbol, p["wte.weight"]) + p["wpe.0.weight"][t]
            for (keys, values), weights in zip(kept, layers, strict=True):
                x = block(x, places[t : t + 1], s.heads, keys, values, weights)
            x = functional.layer_norm(x, (s.width,), *last)
            symbol = draw(functional.linear(x, p["wte.weight"]), u[t])
            drawn[:, t] = symbol
        return drawn

    return loop


def _missing(*modules: str) -> Absent | None:
    gone = [one for one in modules if importlib.util.find_spec(one) is None]
    return Absent(f"{' and '.join(gone)} not installed") if gone else None


def _hugging_face(s: Shape) -> Any:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=s.vocabulary, n_positions=s.context, n_embd=s.width, n_layer=s.layers, n_head=s.heads
    )
    return transformers.GPT2LMHeadModel(config).eval()


def generate(
    s: Shape, rows: int, length: int, dtype: torch.dtype, device: torch.device, cache: str | None = None
) -> Call | Absent:
    """transformers' own loop over its own model, weights as it initialises them; a "static" cache is compiled."""
    missing = _missing("transformers")
    if missing:
        return missing
    model = _hugging_face(s).to(device, dtype)
    start = torch.full((rows, 1), s.vocabulary - 1, device=device)

    def call() -> None:
        with torch.inference_mode():
            model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                top_k=0,
                max_new_tokens=length,
                min_new_tokens=length,
                pad_token_id=s.vocabulary - 1,
                cache_implementation=cache,
            )

    return call


def ctranslate2(s: Shape, rows: int, length: int, compute: str) -> Call | Absent:
    """CTranslate2's loop, in C++, over the same architecture with random weights."""
    missing = _missing("ctranslate2", "transformers")
    if missing:
        return missing
    import ctranslate2 as library
    from ctranslate2.converters import transformers as loaders

    words = [f"w{i}" for i in range(s.vocabulary)]
    loader = loaders._MODEL_LOADERS["GPT2Config"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "model")
        target.mkdir()
        spec = loader.get_model_spec(_hugging_face(s))
        spec.register_vocabulary(words)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = words[-1]
        spec.validate()
        spec.optimize(quantization=compute)
        spec.save(str(target))
        generator = library.Generator(
            str(target), device="cpu", compute_type=compute, intra_threads=torch.get_num_threads()
        )

    def call() -> None:
        generator.generate_batch(
            [[words[-1]]] * rows,
            max_length=length,
            min_length=length,
            sampling_topk=0,
            include_prompt_in_result=False,
            max_batch_size=rows,
        )

    return call


def llama(s: Shape, rows: int, length: int, kind: str) -> Call | Absent:
    """llama.cpp's decoding, over the same architecture with random weights."""
    return _missing("llama_cpp", "gguf") or _llama.generate(s, rows, length, kind)


def transformer(
    name: str, s: Shape, steps: int, *, rows: int = 1, dtype: torch.dtype = torch.float32, small: bool = False
) -> Case:
    def make(device: torch.device) -> Workload:
        model = make_model(s).to(device)
        loops = {"cached loop": cached(model, s, torch.float32)}
        others: dict[str, Call | Part | Absent] = {}
        fast = torch.float32 if dtype == torch.float32 else torch.bfloat16
        if fast != torch.float32:
            loops["cached loop in bfloat16"] = cached(model, s, fast)
        if device.type == "cuda":
            loops["static cache, layers compiled"] = static(model, s, fast, compile_parts=True)
        elif small:
            loops["static cache"] = static(model, s, fast)
        if not small:
            name = f"transformers generate, {str(fast).removeprefix('torch.')}"
            others[name] = generate(s, rows, steps, fast, device)
            if device.type == "cuda":
                others[f"{name}, static cache"] = generate(s, rows, steps, fast, device, "static")
            if device.type == "cpu":
                compute = "float32" if dtype == torch.float32 else "int8"
                others[f"CTranslate2, {compute}"] = ctranslate2(s, rows, steps, compute)
                kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "Q8_0"}[dtype]
                others[f"llama.cpp, {kind}"] = llama(s, rows, steps, kind)
        return Workload(model.lower(), rows, steps, loops, others)

    return case(
        name,
        make,
        Work(weights=s.weights, products=s.weights, steps=steps),
        rows=rows,
        dtype=dtype,
        shapes=f"{s.layers} layers of {s.width}, {s.vocabulary} symbols, {steps} tokens from an empty context",
        per=steps,
        unit="step",
        small=small,
    )


_DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)
_CASES: list[Callable[[torch.dtype], Case]] = [
    lambda dtype: transformer("gpt2-124m", GPT2, 16, dtype=dtype),
    lambda dtype: transformer("gpt2-124m", GPT2, 8, rows=16, dtype=dtype),
]

CASES = (
    *(make(dtype) for make in _CASES for dtype in _DTYPES),
    transformer("transformer-tiny", TINY, 12, rows=3, small=True),
)
