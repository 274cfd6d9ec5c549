"""a_0 = c, a_{i+1} = a_i + W[:, i] x_i, out[b, i, k] = b[i, k] + V[i, k] . act(a_i), along any order of i.

In PyTorch: ``einsum("bdh,dkh->bdk", act(cat([c.expand(B, 1, H), x[:, :-1, None] * W.T[:-1]], 1).cumsum(1)), V) + b``,
which makes several tensors of B x D x H elements. Here a_i is carried along i and none of them exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _autocast, _library, _nade_cpu, _nade_dense, _native, _triton
from fastar.ops._nade_model import Model

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
    out: Tensor = _forward_op(*arguments, order, activation, True, False)[0]
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
            raise ValueError(
                f"{name}: expected at least one position, hidden unit and parameter, got {list(named[name].shape)}"
            )
    for name, tensor in named.items():
        _checks.same_device(name, tensor, "x", x)
    if order is not None:
        _checks.dtype("order", _checks.tensor("order", order), (torch.int64, torch.int32))
        _checks.shape("order", order, [dim])
        _checks.same_device("order", order, "x", x)
    check_activation(activation)
    # As torch's own products do: everything but float64 goes to autocast's dtype.
    target = _autocast.target(x.device)
    if target is not None:
        wide = any(tensor.dtype == torch.float64 for tensor in named.values())
        return tuple(named.values()) if wide else tuple(tensor.to(target) for tensor in named.values())
    for name, tensor in named.items():
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")
    return tuple(named.values())


def _triton_forward(
    x: Tensor, model: Model, bias: Tensor, parameters: bool, log_prob: bool
) -> tuple[Tensor | None, Tensor | None]:
    from fastar.kernels import nade as kernels

    out, total = kernels.forward(
        x, model.weight, model.readout, model.hidden_bias, bias, model.order, model.activation, parameters, log_prob
    )
    return out, total


def _triton_backward(
    grad: Tensor | None, grad_log_prob: Tensor | None, out: Tensor | None, x: Tensor, model: Model, need_x: bool
) -> tuple[Tensor | None, ...]:
    from fastar.kernels import nade as kernels

    gradients: tuple[Tensor | None, ...] = kernels.backward(
        grad, grad_log_prob, out, x, model.weight, model.readout, model.hidden_bias, model.order, model.activation,
        need_x,
    )  # fmt: skip
    return gradients


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "nade",
    [
        _dispatch.Implementation("triton", _triton.why_not, _triton_forward, _triton_backward),
        _dispatch.Implementation("cpu", _native.declines, _nade_cpu.forward, _nade_cpu.backward),
        _dispatch.Implementation("reference", _never, _nade_dense.forward, _nade_dense.backward),
    ],
)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _run(
    x: Tensor, weight: Tensor, readout: Tensor, hidden_bias: Tensor, bias: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    order, activation, parameters, log_prob = rest
    # Here, inside the op, torch.compile does not see that values are looked at; on a GPU it would wait for the device.
    if order is not None and order.device.type == "cpu":
        check_order(order, x.shape[1])
    chosen = _dispatch.choose("nade", x.device, x.dtype)
    model = Model(weight, readout, hidden_bias, order, activation)
    out, total = chosen.forward(x, model, bias, parameters, log_prob)
    wide = _at_least_float32(x.dtype)
    return x.new_empty(0) if out is None else out.contiguous(), x.new_empty(0, dtype=wide) if total is None else total


def _fake(
    x: Tensor, weight: Tensor, readout: Tensor, hidden_bias: Tensor, bias: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, parameters, log_prob = rest
    out = x.new_empty(*x.shape, readout.shape[1]) if parameters else x.new_empty(0)
    return out, x.new_empty(x.shape[0] if log_prob else 0, dtype=_at_least_float32(x.dtype))


def _run_backward(
    grad: Tensor | None, grad_log_prob: Tensor | None, out: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *model, need_x = rest
    chosen = _dispatch.choose("nade", x.device, x.dtype)
    assert chosen.backward is not None
    grads = chosen.backward(grad, grad_log_prob, out, x, Model(*model), need_x)
    # Summed in float32, and rounded to the dtype of the parameters once, here.
    return tuple(x.new_empty(0) if one is None else one.to(x.dtype).contiguous() for one in grads)


def _fake_backward(
    grad: Tensor | None, grad_log_prob: Tensor | None, out: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    weight, readout, hidden_bias, *_, need_x = rest
    shapes = (x.shape if need_x else (0,), weight.shape, readout.shape, hidden_bias.shape, readout.shape[:2])
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, readout, hidden_bias, _, order, activation, parameters, log_prob = inputs
    ctx.set_materialize_grads(False)
    ctx.activation, ctx.complete = activation, parameters
    ctx.mark_non_differentiable(*(one for one, asked in zip(output, (parameters, log_prob), strict=True) if not asked))
    # The logits are needed only where log p is differentiated.
    ctx.save_for_backward(x, weight, readout, hidden_bias, order, output[0] if log_prob else None)


def _backward(ctx: Any, grad: Tensor | None, grad_log_prob: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, readout, hidden_bias, order, out = ctx.saved_tensors
    rest = (None,) * 4
    if grad is None and grad_log_prob is None:
        return (None,) * 5 + rest
    if not ctx.complete:
        raise RuntimeError("fastar::nade: parameters must be set to differentiate log_prob")
    needs = ctx.needs_input_grad[:5]
    grads = _backward_op(grad, grad_log_prob, out, x, weight, readout, hidden_bias, order, ctx.activation, needs[0])
    return *(one if need else None for one, need in zip(grads, needs, strict=True)), *rest


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
    f"(Tensor? grad, Tensor? grad_log_prob, Tensor? out, {_TENSORS}, Tensor? order, str activation, bool need_x)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
