"""c = f * c' + i * g, h = o * tanh(c), [o f i g] = act(x + W * h'): an LSTM over the rows or diagonals of an image.

In PyTorch, along rows: ``for x in x_gates.unbind(2): o, f, i, g = (x + F.conv1d(h, W, padding=k // 2)).chunk(4, 1)``...
Along diagonals a loop needs a skewed copy of the image, half of it padding; here pixels are found where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _autocast, _library, _lstm_scan_cpu, _lstm_scan_dense, _native, _triton
from fastar.reference.lstm_scan import ALONG

State = tuple[Tensor, Tensor]


def lstm_scan(
    x_gates: Tensor, weight: Tensor, *, along: str = "rows", state: State | None = None, return_state: bool = False
) -> Tensor | tuple[Tensor, State]:
    """h of every pixel, where gates [o f i g] = x_gates + conv(h', W), c = f * c' + i * g and h = o * tanh(c).

    x_gates [B, 4 H, rows, columns], what the input adds to the gates: o, f and i, which a sigmoid follows, then g,
    which tanh follows. weight W [4 H, H, k] -> h [B, H, rows, columns], its channels beside each other in memory.

    `along` rows: each row's h' and c' are those of the row above, and W, k odd, is centred on the pixel's own column.
    `state` (h, c), each [B, H, columns], lies above the first row, 0 where it is not given; `return_state` adds that of
    the last row to the result.

    `along` diagonals: h' is h of the pixel above (tap 0 of W) and of the left neighbour (tap 1), whose cell is c'.
    Antidiagonals: the right neighbour in the place of the left one. Outside the image both are 0.

    Gradients for all tensors, of first order.
    """
    h0, c0 = (None, None) if state is None else _unpack(state)
    _check(x_gates, weight, h0, c0, along, return_state)
    x_gates, weight, h0, c0 = _cast(x_gates, weight, h0, c0)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_gates, weight, h0, c0))
    h, c, _, _ = _forward_op(x_gates, weight, h0, c0, along, learns)
    return (h, (h[:, :, -1], c)) if return_state else h


def _unpack(state: object) -> State:
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise ValueError(f"state: expected a pair (h, c), got {type(state).__name__}")
    return _checks.tensor("state h", state[0]), _checks.tensor("state c", state[1])


def _check(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, return_state: bool
) -> None:
    if along not in ALONG:
        raise ValueError(f"along: expected one of {', '.join(ALONG)}, got {along!r}")
    named = {"x_gates": x_gates, "weight": weight}
    named |= {} if h0 is None or c0 is None else {"state h": h0, "state c": c0}
    for name, tensor in named.items():
        _checks.dtype(name, _checks.tensor(name, tensor), _checks.FLOATS)
    _checks.shape("weight", weight, ["4 H", "H", "k"])
    gates, hidden, k = weight.shape
    if hidden < 1 or gates != 4 * hidden:
        raise ValueError(f"weight: expected shape [4 H, H, k] with H of at least 1, got {list(weight.shape)}")
    if along == "rows" and k % 2 == 0:
        raise ValueError(f"weight: expected an odd kernel along rows, which has a centre, got {k}")
    if along != "rows" and k != 2:
        raise ValueError(f"weight: expected a kernel of 2 along {along}, above and beside, got {k}")
    _checks.shape("x_gates", x_gates, ["B", gates, "rows", "columns"])
    if x_gates.shape[2] < 1 or x_gates.shape[3] < 1:
        raise ValueError(f"x_gates: expected at least one row and column, got {list(x_gates.shape)}")
    if along != "rows" and (h0 is not None or return_state):
        raise ValueError(f"state: expected none along {along}, where an image is scanned whole")
    for name, tensor in named.items():
        if name.startswith("state"):
            _checks.shape(name, tensor, [x_gates.shape[0], hidden, x_gates.shape[3]])
        _checks.same_device(name, tensor, "x_gates", x_gates)
        if tensor.dtype != x_gates.dtype and _autocast.target(x_gates.device) is None:
            raise TypeError(f"{name}: expected the dtype of x_gates, {x_gates.dtype}, got {tensor.dtype}")


def _cast(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As torch's own products do: everything but float64 goes to autocast's dtype."""
    to = _autocast.target(x_gates.device)
    if to is None or torch.float64 in (x_gates.dtype, weight.dtype):
        return x_gates, weight, h0, c0
    return x_gates.to(to), weight.to(to), None if h0 is None else h0.to(to), None if c0 is None else c0.to(to)


def _triton_forward(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    from fastar.kernels import lstm_scan as kernels

    h, c, gates, cells = kernels.forward(x_gates, weight, h0, c0, along, keep, _triton.allow_tf32())
    return h, c, gates, cells


def _triton_backward(
    grad: Tensor | None,
    grad_c: Tensor | None,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    along: str,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    from fastar.kernels import lstm_scan as kernels

    grad_x, grad_h0, grad_c0 = kernels.backward(grad, grad_c, gates, cells, weight, h0, c0, along, _triton.allow_tf32())
    if not need_weight:
        return grad_x, None, grad_h0, grad_c0
    # The whole image is known by now: a product of two tall matrices, which is a library's.
    product = _lstm_scan_dense.weight_gradient(grad_x, h, h0, along, weight.shape[2], lambda a, b: a.t() @ b)
    return grad_x, product, grad_h0, grad_c0


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "lstm_scan",
    [
        _dispatch.Implementation("triton", _triton.why_not, _triton_forward, _triton_backward),
        _dispatch.Implementation("cpu", _native.declines, _lstm_scan_cpu.forward, _lstm_scan_cpu.backward),
        _dispatch.Implementation("reference", _never, _lstm_scan_dense.forward, _lstm_scan_dense.backward),
    ],
)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _empty_image(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """[B, channels, rows, columns] with the channels beside each other."""
    B, _, rows, columns = x.shape
    return x.new_empty(B, rows, columns, channels, dtype=dtype).permute(0, 3, 1, 2)


def _laid_out(t: Tensor, dtype: torch.dtype) -> Tensor:
    like = _empty_image(t, t.shape[1], dtype)
    return t if t.dtype == dtype and t.stride() == like.stride() else like.copy_(t)


def _run(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = _dispatch.choose("lstm_scan", x_gates.device, x_gates.dtype)
    h, c, gates, cells = chosen.forward(x_gates, weight, h0, c0, along, keep)
    dtype = x_gates.dtype
    return (
        _laid_out(h, dtype),
        c.to(dtype).contiguous() if along == "rows" else x_gates.new_empty(0),
        _laid_out(gates, dtype) if keep else x_gates.new_empty(0),
        _laid_out(cells, _wide(dtype)) if keep else x_gates.new_empty(0, dtype=_wide(dtype)),
    )


def _fake(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, wide, hidden = x_gates.dtype, _wide(x_gates.dtype), weight.shape[1]
    last = (x_gates.shape[0], hidden, x_gates.shape[3])
    return (
        _empty_image(x_gates, hidden, dtype),
        x_gates.new_empty(last if along == "rows" else (0,)),
        _empty_image(x_gates, 4 * hidden, dtype) if keep else x_gates.new_empty(0),
        _empty_image(x_gates, hidden, wide) if keep else x_gates.new_empty(0, dtype=wide),
    )


def _run_backward(
    grad: Tensor | None,
    grad_c: Tensor | None,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    along: str,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    chosen = _dispatch.choose("lstm_scan", h.device, h.dtype)
    assert chosen.backward is not None
    grad_x, grad_weight, grad_h, grad_c = chosen.backward(
        grad, grad_c, h, gates, cells, weight, h0, c0, along, need_weight
    )
    dtype = h.dtype
    return (
        _laid_out(grad_x, dtype),
        h.new_empty(0) if grad_weight is None else grad_weight.to(dtype).contiguous(),
        *(h.new_empty(0) if h0 is None else one.to(dtype).contiguous() for one in (grad_h, grad_c)),
    )


def _fake_backward(
    grad: Tensor | None,
    grad_c: Tensor | None,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    along: str,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    state = (0,) if h0 is None else h0.shape
    return (
        _empty_image(gates, gates.shape[1], h.dtype),
        h.new_empty(weight.shape if need_weight else (0,)),
        h.new_empty(state),
        h.new_empty(state),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, h0, c0, along, keep = inputs
    h, c, gates, cells = output
    ctx.set_materialize_grads(False)
    ctx.along, ctx.complete = along, keep
    ctx.mark_non_differentiable(gates, cells, *([] if along == "rows" else [c]))
    ctx.save_for_backward(h, gates, cells, weight, h0, c0)


def _backward(ctx: Any, grad: Tensor | None, grad_c: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None and grad_c is None:
        return (None,) * 6
    if not ctx.complete:
        raise RuntimeError("fastar::lstm_scan: keep must be set to differentiate")
    needs = ctx.needs_input_grad[:4]
    grads = _backward_op(grad, grad_c, *ctx.saved_tensors, ctx.along, needs[1])
    return (*(one if need else None for one, need in zip(grads, needs, strict=True)), None, None)


_STATE = "Tensor weight, Tensor? h0, Tensor? c0, str along"
_forward_op = _library.define(
    "lstm_scan",
    f"(Tensor x_gates, {_STATE}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "lstm_scan_backward",
    f"(Tensor? grad, Tensor? grad_c, Tensor h, Tensor gates, Tensor cells, {_STATE}, bool need_weight)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
