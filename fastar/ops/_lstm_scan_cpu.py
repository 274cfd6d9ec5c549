"""The scan on the CPU: native code in float32, a group of images per thread from the first step to the last.

Per step one product takes the hidden units of all images of the group, and the gates follow while its result is in the
second cache level. The weight's gradient is a single product over all pixels afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops import _packed, _products
from fastar.ops._lstm_scan_dense import weight_gradient
from fastar.ops._native import address


def _channels_last(t: Tensor | None) -> Tensor | None:
    """The same with the channels, which are second, last, in float32 and contiguous."""
    return None if t is None else t.detach().movedim(1, -1).float().contiguous()


def _channels_second(t: Tensor) -> Tensor:
    return t.movedim(-1, 1)


def forward(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """h of all pixels, the cell after the last step, and, to be kept, activated gates and cells of all pixels."""
    B, G, rows, columns = x_gates.shape
    H, k = weight.shape[1:]
    x, wide = _channels_last(x_gates), weight.detach().float().contiguous()
    start_h, start_c = _channels_last(h0), _channels_last(c0)
    assert x is not None
    last = x.new_empty(B, columns if along == "rows" else rows, H)
    h, gates, cells = (
        _packed.empty(B, rows, columns, channels, dtype=x.dtype) if needed else None
        for channels, needed in ((H, True), (G, keep), (H, keep))
    )
    core().lstm_forward(
        core().LstmScan(along, (B, rows, columns), (H, k), wide.data_ptr()),
        *(address(t) for t in (x, start_h, start_c, h, gates, cells, last)),
        torch.get_num_threads(),
    )
    assert h is not None
    kept_gates, kept_cells = (None if t is None else _channels_second(t) for t in (gates, cells))
    return _channels_second(h), _channels_second(last), kept_gates, kept_cells


def backward(
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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of the gates before their activation, of the weight, and of both initial states."""
    B, G, rows, columns = gates.shape
    H, k = weight.shape[1:]
    wide = weight.detach().float().contiguous()
    known = [_channels_last(t) for t in (grad, grad_c, gates, cells, c0)]
    grad_x = _packed.empty(B, rows, columns, G, dtype=wide.dtype)
    start = [wide.new_empty(B, columns, H) for _ in range(2)]
    core().lstm_backward(
        core().LstmScan(along, (B, rows, columns), (H, k), wide.data_ptr()),
        *(address(t) for t in (*known, grad_x)),
        *(0 if h0 is None else t.data_ptr() for t in start),
        torch.get_num_threads(),
    )
    image = _channels_second(grad_x)
    grad_weight = weight_gradient(image, h.float(), h0, along, k, _products.atb) if need_weight else None
    return image, grad_weight, _channels_second(start[0]), _channels_second(start[1])
