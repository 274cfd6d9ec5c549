"""a_0 = c, a_{i+1} = a_i + W[:, i] x_i, out[b, i, k] = b[i, k] + V[i, k] . act(a_i), along any order of the positions i.

In PyTorch: ``einsum("bdh,dkh->bdk", act(cat([c.expand(B, 1, H), x[:, :-1, None] * W.T[:-1]], 1).cumsum(1)), V) + b``,
which makes several tensors of B x D x H elements. Here a_i is carried along i and none of them exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _library, _nade_cpu, _triton
from fastar.reference import activation as activations
from fastar.reference import nade as reference

ACTIVATIONS = ("sigmoid", "relu", "tanh")


def nade(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    *,
    activation: str = "sigmoid",
    order: Tensor | None = None,
) -> Tensor:
    """out[b, i, k] = b[i, k] + V[i, k] . act(c + sum over j before i of W[:, j] x[b, j]).

    x [B, D] of any values, weight W [H, D], readout V [D, K, H], hidden_bias c [H], bias b [D, K] -> [B, D, K]; the
    K parameters of a position depend on the positions before it alone. `order` is a permutation of 0..D-1, order[k]
    being the position that comes k-th; all tensors keep the positions' own numbering. activation: sigmoid, relu, tanh.

    In PyTorch, for the natural order:
    ``einsum("bdh,dkh->bdk", act(cat([c.expand(B, 1, H), x[:, :-1, None] * W.T[:-1]], 1).cumsum(1)), V) + b``.

    Gradients for x, W, V, c and b, of first order. Terms with x_j = 0 are skipped, also where W is infinite. That
    `order` is a permutation is checked on the CPU only: on a GPU a check would wait for the device.
    """
    arguments = _prepare(x, weight, readout, hidden_bias, bias, activation, order)
    out, _ = _forward_op(*arguments, order, activation, True, False)
    return out


def nade_log_prob(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    *,
    activation: str = "sigmoid",
    order: Tensor | None = None,
    return_logits: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(x) = sum over i of log Bernoulli(x_i; logit out[b, i]) [B], with `out` as `nade` gives it for K = 1.

    float32 at least, whatever the dtype of x. With `return_logits` also the logits [B, D]; without, they are kept only
    where a gradient is to be computed. x holds values in [0, 1] (checked on the CPU): 0 and 1, or means of them, for
    which it is the negative cross-entropy.

    In PyTorch: ``-binary_cross_entropy_with_logits(nade(x, ...)[..., 0], x, reduction="none").sum(1)``.
    """
    if _checks.tensor("readout", readout).dim() == 3 and readout.shape[1] != 1:
        raise ValueError(f"readout: expected K = 1 parameter for a Bernoulli, got K = {readout.shape[1]}")
    arguments = _prepare(x, weight, readout, hidden_bias, bias, activation, order)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in arguments)
    out, log_prob = _forward_op(*arguments, order, activation, learns or return_logits, True)
    return (log_prob, out[..., 0]) if return_logits else log_prob


def check_order(order: Tensor, dim: int) -> None:
    """The order is a permutation of 0..dim-1; waits for the device where it lies on one."""
    if not torch.equal(order.long().sort().values, torch.arange(dim, device=order.device)):
        raise ValueError(f"order: expected a permutation of 0..{dim - 1}, got {order.tolist()}")


def check_activation(activation: str) -> None:
    """The activation is one of those that the kernels fuse."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _prepare(
    x: Tensor, weight: Tensor, readout: Tensor, hidden_bias: Tensor, bias: Tensor, activation: str, order: Tensor | None
) -> tuple[Tensor, ...]:
    named = {"x": x, "weight": weight, "readout": readout, "hidden_bias": hidden_bias, "bias": bias}
    for name, tensor in named.items():
        _checks.dtype(name, _checks.tensor(name, tensor), _checks.FLOATS)
    _checks.shape("weight", weight, ["H", "D"])
    hidden, dim = weight.shape
    _checks.shape("readout", readout, [dim, "K", hidden])
    _checks.shape("x", x, ["B", dim])
    _checks.shape("hidden_bias", hidden_bias, [hidden])
    _checks.shape("bias", bias, [dim, readout.shape[1]])
    for name, size in (("weight", hidden), ("weight", dim), ("readout", readout.shape[1])):
        if size == 0:
            raise ValueError(f"{name}: expected at least one position, hidden unit and parameter, got {list(named[name].shape)}")
    for name, tensor in named.items():
        _checks.same_device(name, tensor, "x", x)
    if order is not None:
        _checks.dtype("order", _checks.tensor("order", order), (torch.int64, torch.int32))
        _checks.shape("order", order, [dim])
        _checks.same_device("order", order, "x", x)
    check_activation(activation)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        # As torch's own products do: everything but float64 goes to autocast's dtype.
        target = torch.get_autocast_dtype(kind)
        return tuple(t if torch.float64 in {one.dtype for one in named.values()} else t.to(target) for t in named.values())
    for name, tensor in named.items():
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")
    return tuple(named.values())


def _reference_forward(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    order: Tensor | None,
    activation: str,
    parameters: bool,
    log_prob: bool,
) -> tuple[Tensor | None, Tensor | None]:
    out = reference.nade(x, weight, readout, hidden_bias, bias, activation, order)
    return out if parameters else None, reference.bernoulli_log_prob(out[..., 0], x) if log_prob else None


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    h = activations.APPLY[activation](reference.states(x, weight, hidden_bias, order))
    grad_a = activations.backward(activation, torch.einsum("bdk,dkh->bdh", grad, readout), h)
    steps = torch.arange(x.shape[1], device=x.device) if order is None else order.long()
    in_order = grad_a[:, steps]
    # What all later positions say of a: the sum from a position on, without its own.
    later = (in_order.flip(1).cumsum(1).flip(1) - in_order)[:, torch.argsort(steps)]
    return (
        torch.einsum("bdh,hd->bd", later, weight) if need_x else None,
        torch.einsum("bdh,bd->hd", later, x),
        torch.einsum("bdk,bdh->dkh", grad, h),
        grad_a.sum((0, 1)),
    )


def _triton_forward(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    order: Tensor | None,
    activation: str,
    parameters: bool,
    log_prob: bool,
) -> tuple[Tensor | None, Tensor | None]:
    from fastar.kernels import nade as kernels

    out, total = kernels.forward(
        x, weight, readout, hidden_bias, bias, order, activation, parameters, log_prob, _triton.allow_tf32()
    )
    return out, total


def _triton_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    from fastar.kernels import nade as kernels

    grad_x, grad_weight, grad_readout, grad_hidden_bias = kernels.backward(
        grad, x, weight, readout, hidden_bias, order, activation, need_x, _triton.allow_tf32()
    )
    return grad_x, grad_weight, grad_readout, grad_hidden_bias


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "nade",
    [
        _dispatch.Implementation("triton", _triton.why_not, _triton_forward, _triton_backward),
        _dispatch.Implementation("cpu", _nade_cpu.declines, _nade_cpu.forward, _nade_cpu.backward),
        _dispatch.Implementation("reference", _never, _reference_forward, _reference_backward),
    ],
)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _run(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    order: Tensor | None,
    activation: str,
    parameters: bool,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    # Values are looked at here, inside the op, which torch.compile does not see, and on the CPU, where it is no wait.
    if x.device.type == "cpu":
        if order is not None:
            check_order(order, x.shape[1])
        if log_prob and x.numel() > 0:
            low, high = (one.item() for one in x.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"x: expected values in [0, 1] for a Bernoulli, got values in [{low}, {high}]")
    chosen = _dispatch.choose("nade", x.device, x.dtype)
    out, total = chosen.forward(
        x, weight, readout, hidden_bias, bias, order, activation, parameters, log_prob
    )
    wide = _at_least_float32(x.dtype)
    return x.new_empty(0) if out is None else out.contiguous(), x.new_empty(0, dtype=wide) if total is None else total


def _fake(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    order: Tensor | None,
    activation: str,
    parameters: bool,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(*x.shape, readout.shape[1]) if parameters else x.new_empty(0)
    return out, x.new_empty(x.shape[0] if log_prob else 0, dtype=_at_least_float32(x.dtype))


def _run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor, ...]:
    chosen = _dispatch.choose("nade", x.device, x.dtype)
    assert chosen.backward is not None
    grad_x, *others = chosen.backward(grad, x, weight, readout, hidden_bias, order, activation, need_x)
    # Accumulated in float32; rounded to the parameters' dtype once, here.
    grads = [x.new_empty(0) if grad_x is None else grad_x, *others]
    return tuple(one.to(x.dtype).contiguous() for one in grads)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor, ...]:
    grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return grad_x, *(one.new_empty(one.shape) for one in (weight, readout, hidden_bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, readout, hidden_bias, _, order, activation, parameters, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.activation, ctx.complete = activation, parameters
    if not parameters:
        ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(x, weight, readout, hidden_bias, order, output[0])


def _backward(ctx: Any, grad: Tensor | None, grad_log_prob: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, readout, hidden_bias, order, out = ctx.saved_tensors
    need_x, *needs = ctx.needs_input_grad[:5]
    rest = (None,) * 4
    direct = None
    if grad_log_prob is not None:
        if not ctx.complete:
            raise RuntimeError("fastar::nade: parameters must be set to differentiate log_prob")
        logits = out[..., 0].to(grad_log_prob.dtype)
        by_row = grad_log_prob[:, None]
        grad_logits = (by_row * (x - torch.sigmoid(logits)))[..., None]
        grad = grad_logits if grad is None else grad_logits + grad
        direct = by_row * logits if need_x else None
    if grad is None:
        return (None,) * 5 + rest
    grad_bias = grad.sum(0).to(x.dtype) if needs[-1] else None
    grad_x, *grads = _backward_op(grad, x, weight, readout, hidden_bias, order, ctx.activation, need_x)
    if direct is not None:
        grad_x = (grad_x + direct).to(x.dtype)
    wanted = [one if need else None for one, need in zip(grads, needs[:-1], strict=True)]
    return grad_x if need_x else None, *wanted, grad_bias, *rest


_TENSORS = "Tensor x, Tensor weight, Tensor readout, Tensor hidden_bias"
_forward_op = _library.define(
    "nade",
    f"({_TENSORS}, Tensor bias, Tensor? order, str activation, bool parameters, bool log_prob) -> (Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "nade_backward",
    f"(Tensor grad, {_TENSORS}, Tensor? order, str activation, bool need_x) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
