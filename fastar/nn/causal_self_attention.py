"""CausalSelfAttention: attention of each position to earlier ones and itself, with a cache for sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.ops.attention import attention, check_pattern


class KeyValueCache(NamedTuple):
    """Keys and values [B, kv_heads, length, D] of the positions before `position`; what lies beyond is unwritten."""

    key: Tensor
    value: Tensor
    position: int


class CausalSelfAttention(nn.Module):
    """y_t = W_o concat over heads h of softmax(q_h,t k_h^T / sqrt(D)) v_h + b_o, over positions up to t.

    x [B, T, width] -> [B, T, width]. One product makes queries, keys and values: `qkv` is a `torch.nn.Linear` whose
    outputs are all queries, then all keys, then all values, each head by head; `proj` is W_o. GPT-2's `c_attn` and
    `c_proj` are these, transposed.

    Args:
        width: width of the input and output; heads divides it.
        heads: number of query heads.
        kv_heads: number of key and value heads, each shared by heads / kv_heads query heads; heads where not given.
        bias: learn additive biases in both products.
        window: see the last `window` positions only, the own one included.
        local: (rows, columns, image width): positions are pixels in raster order, and see their own row and `rows` rows
            above, at most `columns` columns to either side.
        dropout: probability with which an attention weight is dropped in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        window: int | None = None,
        local: tuple[int, int, int] | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = _checks.positive("width", width)
        self.heads = _checks.positive("heads", heads)
        self.kv_heads = heads if kv_heads is None else _checks.positive("kv_heads", kv_heads)
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of the number of heads {heads}, got {kv_heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        self.window, self.local = check_pattern(window, local)
        self.dropout = dropout
        kv_width = self.kv_heads * (width // heads)
        self.qkv = nn.Linear(width, width + 2 * kv_width, bias, device=device, dtype=dtype)
        self.proj = nn.Linear(width, width, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        _checks.shape("x", _checks.tensor("x", x), ["B", "T", self.width])
        q, k, v = self._split(x)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, window=self.window, local=self.local, dropout=dropout)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def init_state(self, batch: int, length: int) -> KeyValueCache:
        """An empty cache for `length` positions."""
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
            raise ValueError(f"batch: expected an integer of at least 0, got {batch!r}")
        shape = (batch, self.kv_heads, _checks.positive("length", length), self.width // self.heads)
        key, value = (self.proj.weight.new_zeros(shape) for _ in range(2))
        return KeyValueCache(key, value, 0)

    @torch.no_grad()
    def step(self, x_t: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """The output [B, width] of the next position from its input [B, width], without gradients or dropout.

        Its key and value are written into the state's tensors, which the new state shares: the old one can still be
        continued, from its own position.
        """
        _checks.shape("x_t", _checks.tensor("x_t", x_t), ["B", self.width])
        key, value, position = state
        expected = (x_t.shape[0], self.kv_heads, "length", self.width // self.heads)
        _checks.shape("state.key", _checks.tensor("state.key", key), expected)
        _checks.shape("state.value", _checks.tensor("state.value", value), key.shape)
        if not 0 <= position < key.shape[2]:
            raise ValueError(f"state: expected room for another position, got {position} of {key.shape[2]} taken")
        q, k, v = self._split(x_t[:, None])
        key[:, :, position] = k[:, :, 0]
        value[:, :, position] = v[:, :, 0]
        seen = slice(0, position + 1)
        y = attention(q, key[:, :, seen], value[:, :, seen], window=self.window, local=self.local)
        return self.proj(y.transpose(1, 2).flatten(1)), KeyValueCache(key, value, position + 1)

    def _split(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [B, heads, T, D]."""
        D = self.width // self.heads
        parts = self.qkv(x).split([self.width, self.kv_heads * D, self.kv_heads * D], -1)
        return [part.unflatten(-1, (-1, D)).transpose(1, 2) for part in parts]

    def extra_repr(self) -> str:
        parts = [f"width={self.width}", f"heads={self.heads}"]
        if self.kv_heads != self.heads:
            parts.append(f"kv_heads={self.kv_heads}")
        for name in ("window", "local"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        return ", ".join(parts)
