"""Causal attention: y = softmax(q k^T * scale + mask) v, where the mask leaves each position itself and earlier ones.

In PyTorch: ``F.scaled_dot_product_attention(q, k, v, attn_mask=mask)``, which multiplies what the mask removes. Here
the products are PyTorch's own as well, over blocks of queries and the keys that some query of the block sees.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _autocast, _library
from fastar.reference.attention import furthest, visible

# Blocks have a multiple of so many positions: shorter ones, and odd numbers of keys, are slow in PyTorch's op.
BLOCK = 32

# Multiply-adds that blocks have to save before they are worth their calls.
LEAST_SAVED = 1 << 23

# Elements of a mask that is kept for the next call, on the CPU. Making one takes longer than a small attention does.
MOST_KEPT = 1 << 16


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    local: tuple[int, int, int] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scale + mask) v: position t sees no position after itself.

    q [B, heads, T, D], k and v [B, kv_heads, S, D] -> [B, heads, T, D], where kv_heads divides heads and head h reads
    key and value head ``h // (heads // kv_heads)``. S may exceed T: the queries are then the last T of the S positions,
    as when earlier keys come from a cache.

    `window`: see the last `window` positions only, the own one included. `local` = (rows, columns, width): position t
    is the pixel (t // width, t % width) of an image, and sees its own row and `rows` rows above, at most `columns`
    columns to either side. `scale`: 1 / sqrt(D) where not given. `dropout`: probability with which a weight is dropped.

    In PyTorch: ``F.scaled_dot_product_attention(q, k, v, attn_mask=mask)``. Gradients for q, k and v, of first order.
    """
    _check(q, k, v, dropout)
    window, local = check_pattern(window, local)
    q, k, v = _cast(q, k, v)
    T, S = q.shape[2], k.shape[2]
    reach = furthest(window, local)
    if local is None and reach >= S - 1:
        if T in (1, S):
            return _product(q, k, v, None, T > 1, scale, dropout)
        window = None
    elif T == S:
        block = _block(reach, local)
        saved = T * (T - block - reach)
        if 2 * q.shape[0] * q.shape[1] * q.shape[3] * saved >= LEAST_SAVED:
            # Blocks of whole rows begin where the rows of their first pixel's neighbourhood do.
            back = -(-(reach if local is None else local[0] * local[2]) // block)
            return _by_blocks(q, k, v, block, back, window, local, scale, dropout)
    # The first query is position S - T, and keys before S - T - reach are seen by none.
    first = max(0, S - T - reach)
    k, v = k[:, :, first:], v[:, :, first:]
    mask = _mask(T, S - first, first, window, local, q)
    return _product(q, k, v, mask, False, scale, dropout)


def check_pattern(window: object, local: object) -> tuple[int | None, tuple[int, int, int] | None]:
    """The window or the neighbourhood, as integers."""
    if window is not None and local is not None:
        raise ValueError(f"local: expected either a window or a local neighbourhood, got both ({window}, {local})")
    if window is not None:
        return _checks.positive("window", window), None
    if local is None:
        return None, None
    if not isinstance(local, (tuple, list)) or len(local) != 3:
        raise ValueError(f"local: expected (rows, columns, image width), got {local!r}")
    for one in local:
        if isinstance(one, bool) or not isinstance(one, int):
            raise TypeError(f"local: expected (rows, columns, image width) as integers, got {local!r}")
    rows, columns, width = local
    if rows < 0 or columns < 0 or width < 1:
        raise ValueError(f"local: expected rows and columns of at least 0 and a width of at least 1, got {local!r}")
    return None, (rows, columns, width)


def _check(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _checks.dtype(name, _checks.tensor(name, tensor), _checks.FLOATS)
    _checks.shape("q", q, ["B", "heads", "T", "D"])
    B, heads, T, D = q.shape
    _checks.shape("k", k, [B, "kv_heads", "S", D])
    _checks.shape("v", v, k.shape)
    if k.shape[1] < 1 or heads % k.shape[1]:
        raise ValueError(f"k: expected a number of heads that divides q's {heads}, got {k.shape[1]}")
    if k.shape[2] < T:
        raise ValueError(f"k: expected at least as many positions as q, {T}, got {k.shape[2]}")
    for name, tensor in (("k", k), ("v", v)):
        _checks.same_device(name, tensor, "q", q)
        if tensor.dtype != q.dtype and _autocast.target(q.device) is None:
            raise TypeError(f"{name}: expected the dtype of q, {q.dtype}, got {tensor.dtype}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")


def _cast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    to = _autocast.target(q.device)
    if to is None or torch.float64 in (q.dtype, k.dtype, v.dtype):
        return q, k, v
    return q.to(to), k.to(to), v.to(to)


def _block(reach: int, local: tuple[int, int, int] | None) -> int:
    """Queries of a block, a quarter of what they reach back to; what is visible in an image repeats with its rows."""
    unit = BLOCK if local is None else math.lcm(BLOCK, local[2])
    return unit * max(1, -(-reach // (4 * unit)))


def _product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _mask(T: int, S: int, first: int, window: int | None, local: tuple[int, int, int] | None, like: Tensor) -> Tensor:
    """What is added to the scores of the last T of the S positions from `first` on: 0 or -infinity."""
    if like.is_cpu and T * S <= MOST_KEPT and _library.plain(like):
        return _kept_mask(T, S, first, window, local, like.dtype)
    return _made_mask(T, S, first, window, local, like.dtype, like.device)


@functools.lru_cache(maxsize=16)
def _kept_mask(
    T: int, S: int, first: int, window: int | None, local: tuple[int, int, int] | None, dtype: torch.dtype
) -> Tensor:
    # A tensor made in inference mode could not be saved for a backward later.
    with torch.inference_mode(False):
        return _made_mask(T, S, first, window, local, dtype, torch.device("cpu"))


def _made_mask(
    T: int,
    S: int,
    first: int,
    window: int | None,
    local: tuple[int, int, int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    positions = torch.arange(first, first + S, device=device)
    seen = visible(positions[S - T :], positions, window, local)
    return torch.zeros(T, S, device=device, dtype=dtype).masked_fill_(~seen, -math.inf)


def _by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    back: int,
    window: int | None,
    local: tuple[int, int, int] | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Each block of queries with its own block of keys and the `back` blocks before it."""
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    # Made once: the last block of back + 1 sees what every later one does, and earlier ones less of the same.
    mask = _mask(block, (back + 1) * block, 0, window, local, q)
    queries, keys, values = (t.split(block, 2) for t in (q, k, v))

    def seen(t: Tensor, cut: tuple[Tensor, ...], first: int, last: int) -> Tensor:
        # The gradient of overlapping slices is a sum of tensors as large as the whole; that of `split`, one `cat`.
        return torch.cat(cut[first : last + 1], 2) if learns else t[:, :, first * block : (last + 1) * block]

    parts = []
    for n, own in enumerate(queries):
        first = max(0, n - back)
        k_n, v_n = seen(k, keys, first, n), seen(v, values, first, n)
        # A last block that is shorter ends with the positions that are there.
        start = (back - n + first) * block
        part = mask[: own.shape[2], start : start + k_n.shape[2]]
        parts.append(_product(own, k_n, v_n, part, False, scale, dropout))
    return torch.cat(parts, 2)


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


# For `fastar doctor`: there is nothing to choose here. Calls are torch's own op with its autograd, so they need no
# registration with torch.library either; which kernel serves a device and a dtype is torch's choice.
_dispatch.register("attention", [_dispatch.Implementation("torch", _never, _product)])
