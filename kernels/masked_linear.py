"""Masked linear: y = act(x (W * M)^T + b) and its gradients, from the tensors of a fastar.ops.mask_plan.MaskPlan.

In PyTorch: ``act(F.linear(x, weight * mask, bias))``. Products run in the plan's order (_masked_products.py). Where
that permutes columns, passes around them pack x and W, and unpack y and the gradients (_columns.py); a permutation of
rows of W alone costs one such pass over y, and over grad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor

from fastar.kernels import _columns, _tiles
from fastar.kernels._launch import Config
from fastar.kernels._masked_products import forward_kernel, input_gradient_kernel, weight_gradient_kernel


def _precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


def _plan_name(reach: Tensor | None, mask: Tensor | None) -> str:
    return "triangle" if reach is not None else "dense" if mask is None else "blocks"


def _packed(weight: Tensor, row_order: Tensor | None, column_order: Tensor, reach: Tensor) -> Tensor:
    """W with both orders applied; what the mask removes beyond a row's reach stays unwritten."""
    return _columns.permuted(weight, column_order, source_rows=row_order, bound=reach, bounded="out")


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_order: Tensor | None,
    column_order: Tensor | None,
    row_rank: Tensor | None,
    column_rank: Tensor | None,
    reach: Tensor | None,
    mask: Tensor | None,
    block_map: Tensor | None,
    activation: str,
    keep_preactivation: bool,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor]:
    """y [M, N] and the pre-activation z, [M, N] if kept, else empty; x [M, K], weight [N, K], then a plan's tensors."""
    M, K = x.shape
    N = weight.shape[0]
    y = x.new_empty(M, N)
    z = x.new_empty((M, N) if keep_preactivation else 0)
    if y.numel() == 0:
        return y, z
    packed = column_order is not None
    if column_order is not None:
        assert reach is not None
        x = _columns.permuted(x, column_order)
        weight = _packed(weight, row_order, column_order, reach)
    sorted_y = y if row_rank is None else torch.empty_like(y)
    sorted_z = None if not keep_preactivation else z if row_rank is None else torch.empty_like(z)
    precision = _precision(x.dtype, allow_tf32)

    def run(config: Config) -> None:
        blocks, counts = (None, None) if block_map is None else _tiles.listed_blocks(block_map, config.columns, 0, K)
        arguments = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "y": sorted_y,
            "z": sorted_z,
            "row_order": row_order,
            "reach": reach,
            "mask": mask,
            "blocks": blocks,
            "counts": counts,
            "M": M,
            "N": N,
            "K": K,
            "stride_xm": x.stride(0),
            "stride_xk": x.stride(1),
            "stride_wn": weight.stride(0),
            "stride_wk": weight.stride(1),
            "stride_ym": N,
            "stride_blocks": 0 if blocks is None else blocks.stride(0),
            "ACTIVATION": activation,
            "PACKED": packed,
            "PRECISION": precision,
            "GROUP": _tiles.GROUP,
            "BLOCK_M": config.rows,
            "BLOCK_N": config.columns,
            "BLOCK_K": config.reduced,
        }
        _tiles.launch_product(forward_kernel, M, N, config, x.device, arguments)

    _tiles.tuned("masked_linear.forward", _plan_name(reach, mask), x, precision, (M, N, K), run)
    if row_rank is not None:
        _columns.permuted(sorted_y, row_rank, out=y)
        if sorted_z is not None:
            _columns.permuted(sorted_z, row_rank, out=z)
    return y, z


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    row_order: Tensor | None,
    column_order: Tensor | None,
    row_rank: Tensor | None,
    column_rank: Tensor | None,
    reach: Tensor | None,
    mask: Tensor | None,
    block_map: Tensor | None,
    activation: str,
    needs: tuple[bool, bool, bool],
    allow_tf32: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, each if it is needed; `saved` is y, or z for gelu, gelu_tanh and silu."""
    need_x, need_weight, need_bias = needs
    g, bias_gradient = _columns.activation_gradient(
        grad,
        None if activation == "none" else saved,
        activation,
        row_order,
        need_values=need_x or need_weight,
        need_sums=need_bias,
    )
    precision = _precision(x.dtype, allow_tf32)
    plan = (row_order, column_order, column_rank, reach, mask, block_map)
    input_gradient = _input_gradient(g, weight, *plan, precision) if need_x else None
    weight_gradient = _weight_gradient(g, x, *plan, precision) if need_weight else None
    return input_gradient, weight_gradient, bias_gradient


def _input_gradient(
    g: Tensor,
    weight: Tensor,
    row_order: Tensor | None,
    column_order: Tensor | None,
    column_rank: Tensor | None,
    reach: Tensor | None,
    mask: Tensor | None,
    block_map: Tensor | None,
    precision: str,
) -> Tensor:
    M, N = g.shape
    K = weight.shape[1]
    if 0 in (M, N, K):
        return g.new_zeros(M, K)
    dx = g.new_empty(M, K)
    if column_order is not None:
        assert reach is not None
        weight = _packed(weight, row_order, column_order, reach)
        row_order = None
    sorted_dx = dx if column_rank is None else torch.empty_like(dx)

    def run(config: Config) -> None:
        blocks, counts = (None, None) if block_map is None else _tiles.listed_blocks(block_map, config.columns, 1, N)
        arguments = {
            "g": g,
            "weight": weight,
            "dx": sorted_dx,
            "row_order": row_order,
            "reach": reach,
            "mask": mask,
            "blocks": blocks,
            "counts": counts,
            "M": M,
            "N": N,
            "K": K,
            "stride_gm": g.stride(0),
            "stride_gn": g.stride(1),
            "stride_wn": weight.stride(0),
            "stride_wk": weight.stride(1),
            "stride_dm": K,
            "stride_blocks": 0 if blocks is None else blocks.stride(0),
            "SPAN": _tiles.span(N),
            "PRECISION": precision,
            "GROUP": _tiles.GROUP,
            "BLOCK_M": config.rows,
            "BLOCK_K": config.columns,
            "BLOCK_N": config.reduced,
        }
        _tiles.launch_product(input_gradient_kernel, M, K, config, g.device, arguments)

    _tiles.tuned("masked_linear.input_gradient", _plan_name(reach, mask), g, precision, (M, K, N), run)
    if column_rank is not None:
        _columns.permuted(sorted_dx, column_rank, out=dx)
    return dx


def _weight_gradient(
    g: Tensor,
    x: Tensor,
    row_order: Tensor | None,
    column_order: Tensor | None,
    column_rank: Tensor | None,
    reach: Tensor | None,
    mask: Tensor | None,
    block_map: Tensor | None,
    precision: str,
) -> Tensor:
    M, N = g.shape
    K = x.shape[1]
    if 0 in (M, N, K):
        return g.new_zeros(N, K)
    dw = g.new_empty(N, K)
    out = dw
    if column_order is not None:
        x = _columns.permuted(x, column_order)
        out = g.new_empty(N, triton.cdiv(K, 64) * 64)

    def run(config: Config) -> None:
        arguments = {
            "g": g,
            "x": x,
            "dw": out,
            "row_order": row_order if column_order is None else None,
            "reach": reach,
            "mask": mask,
            "block_map": block_map,
            "M": M,
            "N": N,
            "K": K,
            "stride_gm": g.stride(0),
            "stride_gn": g.stride(1),
            "stride_xm": x.stride(0),
            "stride_xk": x.stride(1),
            "stride_dn": out.stride(0),
            "WRITE_EMPTY": column_order is None,
            "PRECISION": precision,
            "GROUP": _tiles.GROUP,
            "BLOCK_N": config.rows,
            "BLOCK_K": config.columns,
            "BLOCK_M": config.reduced,
        }
        _tiles.launch_product(weight_gradient_kernel, N, K, config, g.device, arguments)

    _tiles.tuned("masked_linear.weight_gradient", _plan_name(reach, mask), g, precision, (N, K, M), run)
    if column_order is not None:
        assert column_rank is not None
        # The zeros of the masked part are written here, from the reach alone.
        _columns.permuted(out[:, :K], column_rank, out=dw, out_rows=row_order, bound=reach, bounded="source")
    return dw


def block_products(
    reach: Tensor | None, block_map: Tensor | None, M: int, N: int, K: int, config: Config
) -> dict[str, tuple[int, int]]:
    """Per product: how many products of tiles its loops execute, and how many they would without a mask."""
    rows, columns, reduced = config.rows, config.columns, config.reduced
    tiles_m, tiles_n, tiles_k = (triton.cdiv(M, rows), triton.cdiv(N, columns), triton.cdiv(K, columns))
    steps_n, steps_k, steps_m = (triton.cdiv(size, reduced) for size in (N, K, M))
    # dW has rows of N and columns of K.
    tiles_wn = triton.cdiv(N, rows)
    dense = {
        "forward": tiles_m * tiles_n * steps_k,
        "input_gradient": tiles_m * tiles_k * steps_n,
        "weight_gradient": tiles_wn * tiles_k * steps_m,
    }
    if reach is not None:
        reach = reach.cpu().long()

        def last_of(size: int) -> Tensor:
            return reach[(torch.arange(0, N, size) + size).clamp(max=N) - 1]

        first_rows = torch.searchsorted(reach, torch.arange(0, K, columns), right=True)
        seen_whole = torch.searchsorted(reach, (torch.arange(0, K, columns) + columns).clamp(max=K) - 1, right=True)
        first_full = (-(-seen_whole // reduced)).clamp(max=N // reduced)
        starts = torch.minimum(first_rows // reduced, first_full)
        executed = {
            "forward": tiles_m * int((-(-last_of(columns) // reduced)).sum()),
            "input_gradient": tiles_m * int((steps_n - starts).sum()),
            "weight_gradient": steps_m * int((last_of(rows)[:, None] > torch.arange(0, K, columns)).sum()),
        }
    elif block_map is not None:
        alive = block_map.cpu() > 0

        def strips(alive: Tensor, tile: int) -> Tensor:
            """For each tile along the first dimension, which entries of the map it touches, along the second."""
            entries = [
                alive[at // 64 : triton.cdiv(at + tile, 64)].any(0) for at in range(0, alive.shape[0] * 64, tile)
            ]
            return torch.stack(entries)

        per_entry = 64 // reduced
        of_tiles = strips(strips(alive, rows)[:tiles_wn].T, columns)[:tiles_k]
        executed = {
            "forward": tiles_m * per_entry * int(strips(alive, columns)[:tiles_n].sum()),
            "input_gradient": tiles_m * per_entry * int(strips(alive.T, columns)[:tiles_k].sum()),
            "weight_gradient": steps_m * int(of_tiles.sum()),
        }
    else:
        executed = dense
    return {name: (executed[name], dense[name]) for name in dense}


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel, in every dtype and with every kind of plan."""

    def case(dtype: torch.dtype, plan: str, activation: str, allow_tf32: bool, M: int) -> Callable[[], None]:
        def call() -> None:
            N = K = 8192
            ints = {name: torch.empty(N, dtype=torch.int32, device="meta") for name in ("rows", "columns", "reach")}
            rows = ints["rows"] if plan in {"rows", "both"} else None
            columns = ints["columns"] if plan == "both" else None
            reach = None if plan in {"dense", "blocks"} else ints["reach"]
            mask = torch.empty(N, K, dtype=torch.bool, device="meta") if plan == "blocks" else None
            block_map = torch.empty(N // 64, K // 64, dtype=torch.uint8, device="meta") if plan == "blocks" else None
            tensors = (rows, columns, rows, columns, reach, mask, block_map)
            x, grad, weight = (torch.empty(size, 8192, dtype=dtype, device="meta") for size in (M, M, N))
            y, z = forward(x, weight, weight[0], *tensors, activation, activation == "gelu", allow_tf32)
            saved = z if activation == "gelu" else y
            backward(grad, x, weight, saved, *tensors, activation, (True, True, True), allow_tf32)

        return call

    for dtype, plan, activation, allow_tf32 in (
        (torch.bfloat16, "both", "gelu", False),
        (torch.float16, "blocks", "tanh", False),
        (torch.float32, "rows", "elu", False),
        (torch.float32, "sorted", "gelu", True),
    ):
        name = f"{str(dtype).removeprefix('torch.')}{' tf32' if allow_tf32 else ''}, {plan}, {activation}"
        yield name, case(dtype, plan, activation, allow_tf32, 8192)
