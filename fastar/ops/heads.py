"""log p(x) of each position under the parameters of a head, with l the logits and pi = softmax(l):

    Bernoulli x l - log(1 + exp(l)); categorical log pi_x; mixtures log sum_k pi_k prod_c p_k(x_c).

In PyTorch: ``-F.binary_cross_entropy_with_logits``, ``-F.cross_entropy``, and for mixtures
``torch.logsumexp(torch.log_softmax(l, -1) + component.log_prob(x[..., None]), -1)``; each with reduction="none". No
tensor of the size of the parameters is made, except their gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _heads_cpu, _heads_plain, _heads_triton, _library, _native, _triton
from fastar.ops._heads_layout import empty_gradient
from fastar.reference.heads import Head


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, event_dims: int = 0) -> Tensor:
    """x l - log(1 + exp(l)), as ``-F.binary_cross_entropy_with_logits(logits, x, reduction="none")``.

    logits [...], x [...] of 0 and 1 (boolean, integer or float; means in between give the negative cross-entropy). The
    result is the sum over the last `event_dims` dimensions: with 1, logits [B, D] give [B], and nothing of the size of
    the logits is written. float32 at least. Gradient for the logits, of first order.
    """
    _check_params("logits", logits)
    _checks.shape("x", _checks.tensor("x", x), list(logits.shape))
    if isinstance(event_dims, bool) or not isinstance(event_dims, int):
        raise TypeError(f"event_dims: expected an integer, got {type(event_dims).__name__}")
    if not 0 <= event_dims <= logits.dim():
        raise ValueError(f"event_dims: expected 0 to {logits.dim()} for logits {list(logits.shape)}, got {event_dims}")
    if x.dtype != torch.bool and x.dtype not in _checks.INTEGERS:
        _check_float_x(x, logits, "logits")
    return _log_prob("logits", logits, x, Head("bernoulli", event_dims=event_dims))


def categorical_log_prob(logits: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """log_softmax(l)[x] with the levels along `dim`, as ``-F.cross_entropy(logits, x, reduction="none")`` for dim=1.

    logits [..., levels, ...], x [...] of integers from 0 to levels - 1, without that dimension -> [...] of x's shape,
    float32 at least. A level whose logit is -inf has probability 0. Gradient for the logits, of first order.
    """
    _check_params("logits", logits)
    dim = _check_dim(logits, dim, "logits")
    _checks.dtype("x", _checks.tensor("x", x), _checks.INTEGERS)
    _checks.shape("x", x, [*logits.shape[:dim], *logits.shape[dim + 1 :]])
    return _log_prob("logits", logits, x, Head("categorical", dim))


def gaussian_mixture_log_prob(params: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """log sum_k pi_k N(x; m_k, exp(s_k)); in PyTorch, with ``l, m, s = params.chunk(3, -1)``,
    ``logsumexp(log_softmax(l, -1) + Normal(m, s.exp()).log_prob(x[..., None]), -1)``.

    params [..., 3 K, ...] along `dim`: K logits, K means, K log-scales; x [...] floats -> [...] of x's shape, float32
    at least. Gradients for params and x, of first order; a derivative beyond the largest number of the parameters'
    dtype is that number.
    """
    return _continuous("gaussian", params, x, dim)


def laplace_mixture_log_prob(params: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """log sum_k pi_k Laplace(x; m_k, exp(s_k)); in PyTorch, with ``l, m, s = params.chunk(3, -1)``,
    ``logsumexp(log_softmax(l, -1) + Laplace(m, s.exp()).log_prob(x[..., None]), -1)``.

    Arguments, result and gradients as for `gaussian_mixture_log_prob`; where x is a mean, the derivative of that
    component is 0.
    """
    return _continuous("laplace", params, x, dim)


def logistic_mixture_log_prob(
    params: Tensor,
    x: Tensor,
    *,
    dim: int = -1,
    levels: int = 256,
    min_log_scale: float | None = -7.0,
    branch: float = 1e-5,
) -> Tensor:
    """log sum_k pi_k prod_c P(bin of x_c; m_kc, exp(s_kc)) of discretised logistics, as in PixelCNN++.

    x takes `levels` equal steps from -1 to 1: floats in that range, or integers from 0 to levels - 1. A level's bin
    reaches half a step to either side, the first and the last bin to infinity. x [...] without the dimension `dim` has
    one channel, params [..., 3 K, ...] then being K logits, means and log-scales. x [..., C, ...] with C colours in
    that dimension has params [..., K (1 + 2 C + C (C - 1) / 2), ...]: K logits, C x K means, C x K log-scales, and K
    coefficients c for each pair of colours (1, 0), (2, 0), (2, 1)...: tanh(c) times the earlier colour shifts the mean
    of the later one. The result has the shape of params without `dim`, float32 at least.

    Log-scales are at least `min_log_scale` (None: no floor). Where a bin's mass is below `branch`, the density at x
    times the width of a bin takes its place (0: never). Gradient for params, of first order, bounded as for
    `gaussian_mixture_log_prob`. In PyTorch for one channel, apart from floor, ends and branch:
    ``logsumexp(log_softmax(l, -1) + log(sigmoid((x + h - m) / e**s) - sigmoid((x - h - m) / e**s)), -1)``.
    """
    _check_params("params", params)
    dim = _check_dim(params, dim, "params")
    _checks.positive("levels", levels)
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")
    if not (isinstance(branch, int | float) and 0 <= branch < 1):
        raise ValueError(f"branch: expected a probability in [0, 1), got {branch}")
    if min_log_scale is not None and not (isinstance(min_log_scale, int | float) and not math.isnan(min_log_scale)):
        raise ValueError(f"min_log_scale: expected a number or None, got {min_log_scale}")
    positions = [*params.shape[:dim], *params.shape[dim + 1 :]]
    channels = 1
    if _checks.tensor("x", x).dim() == params.dim():
        channels = x.shape[dim]
        _checks.shape("x", x, [*params.shape[:dim], "C", *params.shape[dim + 1 :]])
        if channels == 0:
            raise ValueError(f"x: expected at least one channel in dimension {dim}, got {list(x.shape)}")
    else:
        _checks.shape("x", x, positions)
    if x.dtype not in _checks.INTEGERS:
        _check_float_x(x, params, "params")
    floor = -math.inf if min_log_scale is None else float(min_log_scale)
    head = Head("logistic", dim, levels=levels, min_log_scale=floor, branch=float(branch))
    _check_components(params, channels, head)
    return _log_prob("params", params, x, head)


def _continuous(kind: str, params: Tensor, x: Tensor, dim: int) -> Tensor:
    _check_params("params", params)
    dim = _check_dim(params, dim, "params")
    _checks.shape("x", _checks.tensor("x", x), [*params.shape[:dim], *params.shape[dim + 1 :]])
    _check_float_x(x, params, "params")
    head = Head(kind, dim)
    _check_components(params, 1, head)
    return _log_prob("params", params, x, head)


def _check_params(name: str, params: Tensor) -> None:
    _checks.dtype(name, _checks.tensor(name, params), _checks.FLOATS)


def _check_dim(params: Tensor, dim: int, name: str) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim: expected an integer, got {type(dim).__name__}")
    if not -params.dim() <= dim < params.dim():
        raise ValueError(f"dim: expected a dimension of {name} {list(params.shape)}, got {dim}")
    dim %= params.dim()
    if params.shape[dim] == 0:
        raise ValueError(f"{name}: expected at least one parameter in dimension {dim}, got {list(params.shape)}")
    return dim


def _check_float_x(x: Tensor, params: Tensor, name: str) -> None:
    """Data may be more exact than the parameters of a half-precision network, never less."""
    wide = torch.promote_types(params.dtype, torch.float32)
    if x.dtype not in (params.dtype, wide):
        wanted = " or ".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (params.dtype, wide)))
        got = str(x.dtype).removeprefix("torch.")
        raise TypeError(f"x: expected dtype {wanted}, for {name} of {params.dtype}, got {got}".replace("torch.", ""))


def _check_components(params: Tensor, channels: int, head: Head) -> None:
    size = params.shape[head.dim]
    if head.components(size, channels) == 0:
        each = 1 + 2 * channels + channels * (channels - 1) // 2
        raise ValueError(
            f"params: expected a multiple of {each} parameters in dimension {head.dim} for {channels} channel(s), "
            f"got {size}"
        )


def _log_prob(name: str, params: Tensor, x: Tensor, head: Head) -> Tensor:
    _checks.same_device("x", x, name, params)
    if x.requires_grad and head.kind in ("bernoulli", "logistic"):
        raise ValueError(f"x: a {head.kind} head has no gradient for its data; pass x.detach()")
    out: Tensor = _forward_op(
        params, x, head.kind, head.dim, head.event_dims, head.levels, head.min_log_scale, head.branch
    )
    return out


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "heads",
    [
        _dispatch.Implementation("triton", _triton.why_not, _heads_triton.forward, _heads_triton.backward),
        _dispatch.Implementation("cpu", _native.declines, _heads_cpu.forward, _heads_cpu.backward),
        _dispatch.Implementation("reference", _never, _heads_plain.forward, _heads_plain.backward),
    ],
)


def _out_dtype(params: Tensor) -> torch.dtype:
    return torch.promote_types(params.dtype, torch.float32)


def _run(params: Tensor, x: Tensor, *options: Any) -> Tensor:
    head = Head(*options)
    if params.numel() == 0:
        return params.new_zeros(head.positions(params.shape), dtype=_out_dtype(params))
    chosen = _dispatch.choose("heads", params.device, params.dtype)
    out: Tensor = chosen.forward(params, x, head)
    return out


def _fake(params: Tensor, x: Tensor, *options: Any) -> Tensor:
    return params.new_empty(Head(*options).positions(params.shape), dtype=_out_dtype(params))


def _empty_gradients(params: Tensor, x: Tensor, head: Head, need_x: bool) -> tuple[Tensor, Tensor]:
    contiguous = head.kind == "bernoulli"
    grad_params = params.new_empty(params.shape) if contiguous else empty_gradient(params, head.dim)
    return grad_params, x.new_empty(x.shape if need_x else 0, dtype=_out_dtype(params))


def _run_backward(grad: Tensor, params: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *options, need_x = rest
    head = Head(*options)
    if params.numel() == 0:
        return _empty_gradients(params, x, head, need_x)
    chosen = _dispatch.choose("heads", params.device, params.dtype)
    assert chosen.backward is not None
    grad_params, grad_x = chosen.backward(grad, params, x, head, need_x)
    return grad_params, params.new_empty(0, dtype=_out_dtype(params)) if grad_x is None else grad_x


def _fake_backward(grad: Tensor, params: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *options, need_x = rest
    return _empty_gradients(params, x, Head(*options), need_x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    params, x, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(params, x)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * len(ctx.options)
    if grad is None:
        return (None, None, *rest)
    params, x = ctx.saved_tensors
    need_params, need_x = ctx.needs_input_grad[:2]
    grad_params, grad_x = _backward_op(grad, params, x, *ctx.options, need_x)
    return (grad_params if need_params else None, grad_x.to(x.dtype) if need_x else None, *rest)


_SCHEMA = "Tensor params, Tensor x, str kind, int dim, int event_dims, int levels, float min_log_scale, float branch"
_forward_op = _library.define(
    "heads", f"({_SCHEMA}) -> Tensor", _run, _fake, setup_context=_setup_context, backward=_backward
)
_backward_op = _library.define(
    "heads_backward", f"(Tensor grad, {_SCHEMA}, bool need_x) -> (Tensor, Tensor)", _run_backward, _fake_backward
)
