"""llama.cpp's decoding of a GPT-2 with random weights, by its Python package."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastar.bench.registry import Call

if TYPE_CHECKING:
    from fastar.bench.cases.sampling.transformer import Shape


def generate(s: Shape, rows: int, length: int, kind: str) -> Call:
    """`length` tokens of each of `rows` sequences, weights as ggml's `kind`: F32, BF16, Q8_0.

    A step is one batch with a token of each sequence, and the library's own draw from the whole distribution.
    """
    import llama_cpp as library

    _silence()
    library.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        _write(path, s, kind)
        options = library.llama_model_default_params()
        # The file goes before the model does.
        options.use_mmap = False
        model = library.llama_model_load_from_file(str(path).encode(), options)
    shape = library.llama_context_default_params()
    shape.n_ctx, shape.n_batch, shape.n_seq_max = 256 * rows, max(32, rows), rows
    shape.n_threads = shape.n_threads_batch = torch.get_num_threads()
    context = library.llama_init_from_model(model, shape)
    if not model or not context:
        raise RuntimeError("llama.cpp does not take the model")
    draws = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    library.llama_sampler_chain_add(draws, library.llama_sampler_init_dist(0))
    batch = library.llama_batch_init(rows, 0, 1)

    def call() -> None:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        tokens = [s.vocabulary - 1] * rows
        batch.n_tokens = rows
        for t in range(length):
            for r, token in enumerate(tokens):
                batch.token[r], batch.pos[r], batch.n_seq_id[r], batch.logits[r] = token, t, 1, 1
                batch.seq_id[r][0] = r
            if library.llama_decode(context, batch) != 0:
                raise RuntimeError("llama.cpp could not decode a step")
            tokens = [library.llama_sampler_sample(draws, context, r) for r in range(rows)]

    return call


@functools.cache
def _silence() -> Any:
    import llama_cpp as library

    # The library holds its address only: the cache keeps it alive.
    callback = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(callback, None)
    return callback


def _write(path: Path, s: Shape, kind: str) -> None:
    import gguf

    f32, matrix = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType[kind]
    generator = torch.Generator().manual_seed(0)
    out = gguf.GGUFWriter(str(path), "gpt2")
    out.add_context_length(s.context)
    out.add_embedding_length(s.width)
    out.add_block_count(s.layers)
    out.add_feed_forward_length(4 * s.width)
    out.add_head_count(s.heads)
    out.add_layer_norm_eps(1e-5)
    out.add_vocab_size(s.vocabulary)
    out.add_tokenizer_model("no_vocab")

    def add(name: str, outputs: int, inputs: int, to: Any = matrix) -> None:
        weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).numpy()
        out.add_tensor(name, weight if to == f32 else gguf.quants.quantize(weight, to), raw_dtype=to)

    def vectors(name: str, size: int, *, scaled: bool) -> None:
        if scaled:
            out.add_tensor(f"{name}.weight", torch.ones(size).numpy())
        out.add_tensor(f"{name}.bias", torch.zeros(size).numpy())

    add("token_embd.weight", s.vocabulary, s.width)
    add("position_embd.weight", s.context, s.width, f32)
    for i in range(s.layers):
        for name, outputs, inputs in (("attn_qkv", 3, 1), ("attn_output", 1, 1), ("ffn_up", 4, 1), ("ffn_down", 1, 4)):
            add(f"blk.{i}.{name}.weight", outputs * s.width, inputs * s.width)
            vectors(f"blk.{i}.{name}", outputs * s.width, scaled=False)
        for name in ("attn_norm", "ffn_norm"):
            vectors(f"blk.{i}.{name}", s.width, scaled=True)
    vectors("output_norm", s.width, scaled=True)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
