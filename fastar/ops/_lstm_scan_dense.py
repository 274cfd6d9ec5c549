"""The scan step by step in plain PyTorch, anywhere and in every dtype, and the weight's gradient, which all share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference.lstm_scan import skew, unskew

Result = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]


def forward(x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool) -> Result:
    """h of all pixels, the cell after the last step, and, to be kept, activated gates and cells of all pixels."""
    steps = skew(x_gates, along)
    k = weight.shape[2]
    nothing = steps.new_zeros(steps.shape[0], weight.shape[1], steps.shape[3])
    h, c = nothing if h0 is None else h0, nothing if c0 is None else c0
    kept: tuple[list[Tensor], ...] = ([], [], [])
    for x in steps.unbind(2):
        z = x + F.conv1d(F.pad(h, (k // 2, (k - 1) // 2)), weight)
        gates = torch.cat([z[:, : 3 * h.shape[1]].sigmoid(), z[:, 3 * h.shape[1] :].tanh()], 1)
        o, f, i, g = gates.chunk(4, 1)
        c = f * c + i * g
        h = o * c.tanh()
        for all_steps, one in zip(kept, (h, gates, c), strict=True):
            all_steps.append(one)
    images = [unskew(torch.stack(all_steps, 2), along) for all_steps in kept[: 3 if keep else 1]]
    return images[0], c, images[1] if keep else None, images[2] if keep else None


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
    k, dtype = weight.shape[2], gates.dtype
    o, f, i, g = skew(gates, along).chunk(4, 1)
    cell = skew(cells.to(dtype), along)
    start = torch.zeros_like(cell[:, :, 0]) if c0 is None else c0
    before = torch.cat([start[:, :, None], cell[:, :, :-1]], 2)
    # What a step hands back: lanes without a pixel have gates of 0, and hand nothing back.
    dh_next = torch.zeros_like(start)
    dc = torch.zeros_like(start) if grad_c is None else grad_c.to(dtype)
    dh = None if grad is None else skew(grad.to(dtype), along)
    found = []
    for s in reversed(range(cell.shape[2])):
        whole = dh_next if dh is None else dh[:, :, s] + dh_next
        t = cell[:, :, s].tanh()
        o_s, f_s, i_s, g_s = (one[:, :, s] for one in (o, f, i, g))
        dc = dc + whole * o_s * (1 - t * t)
        dz = torch.cat(
            [
                whole * t * o_s * (1 - o_s),
                dc * before[:, :, s] * f_s * (1 - f_s),
                dc * g_s * i_s * (1 - i_s),
                dc * i_s * (1 - g_s * g_s),
            ],
            1,
        )
        found.append(dz)
        dc = dc * f_s
        dh_next = F.conv_transpose1d(dz, weight)[:, :, k // 2 : k // 2 + dz.shape[2]]
    grad_x = unskew(torch.stack(found[::-1], 2), along)
    grad_weight = weight_gradient(grad_x, h, h0, along, k, lambda a, b: a.t() @ b) if need_weight else None
    return grad_x, grad_weight, dh_next, dc


def neighbours(h: Tensor, h0: Tensor | None, along: str, k: int) -> Tensor:
    """What each pixel's convolution saw, [B, k H, rows, columns], tap after tap; 0 outside the image."""
    if along == "rows":
        first = torch.zeros_like(h[:, :, :1]) if h0 is None else h0[:, :, None].to(h.dtype)
        above = F.pad(torch.cat([first, h[:, :, :-1]], 2), (k // 2, k // 2))
        return torch.cat([above[..., j : j + h.shape[3]] for j in range(k)], 1)
    above = F.pad(h, (0, 0, 1, -1))
    beside = F.pad(h, (-1, 1) if along == "antidiagonals" else (1, -1))
    return torch.cat([above, beside], 1)


def weight_gradient(
    grad_x: Tensor, h: Tensor, h0: Tensor | None, along: str, k: int, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """dW [4 H, H, k] = the sum over pixels of dz times what the pixel's convolution saw; `product` is a^T b."""
    seen = neighbours(h, h0, along, k)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (grad_x, seen)]
    return product(rows[1], rows[0]).view(k, -1, grad_x.shape[1]).permute(2, 1, 0)
