"""Registering ops with torch.library, and calling them without its price where nobody looks.

One call of `define` registers all that PyTorch asks about an op: schema, implementation, fake (shapes without data) and
autograd, and clear refusals of what the library does not do: second derivatives and vmap.

Its dispatcher costs a call some 8 us of Python, 45 us where autograd records (measured at a linear layer of 16x64x64),
which is more than a small layer takes in all. It serves those who trace or transform ops. A call in plain eager mode
goes to the implementation directly, or through an `autograd.Function` of the same formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("fastar", "FRAGMENT")

# What arguments are in plain eager mode, beside tensors: another type may be a tensor that stands for something else.
_PLAIN = frozenset({torch.Size, type(None), bool, int, float, str, list, tuple})
_TENSORS = (Tensor, torch.nn.Parameter)


def _watched() -> bool:
    """Whether a tracer, profiler, mode or function transform looks at calls: then they go through the dispatcher."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
    )


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is what it seems to be, in plain eager mode."""
    return not torch.compiler.is_compiling() and type(tensor) in _TENSORS and not _watched()


def _refuse_second_order(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"fastar.{name}: second-order gradients are not available (first-order only); "
            f"for them use fastar.reference.{name}, which is plain PyTorch"
        )

    return backward


def _refuse_vmap(name: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        raise RuntimeError(
            f"fastar.{name}: vmap is not available; pass the batch as leading dimensions, "
            f"or use fastar.reference.{name}, which is plain PyTorch"
        )

    return rule


def define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Register ``fastar::name`` and return what ops call it by.

    Without `backward` the op is itself a backward: differentiating through it raises an error that says so.
    """
    public = name.removesuffix("_backward")
    derive = backward or _refuse_second_order(public)
    LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")
    qualified = f"fastar::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    torch.library.register_autograd(qualified, derive, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_vmap(qualified, _refuse_vmap(public), lib=LIBRARY)
    overload = getattr(torch.ops.fastar, name).default

    class Recorded(torch.autograd.Function):
        """The op as autograd records it where the dispatcher is passed by."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = run(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return derive(ctx, *grads)

    # Past `Function.apply`, which prepares for function transforms: there are none here.
    record = super(torch.autograd.Function, Recorded).apply

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*args)
        learns = False
        for one in args:
            kind = type(one)
            if kind in _TENSORS:
                if not (one.is_cpu or one.is_cuda):
                    return overload(*args)
                learns = learns or one.requires_grad
            elif kind not in _PLAIN:
                return overload(*args)
        if _watched():
            return overload(*args)
        if learns and torch.is_grad_enabled():
            return record(*args)  # type: ignore[no-untyped-call]
        return run(*args)

    return call
