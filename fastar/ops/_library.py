"""Registering ops with torch.library.

`Library.define` and `Library.impl` cost about 3 us of Python a call, a quarter of what the `custom_op` decorator costs.
One call of `define` registers all that PyTorch asks about an op: schema, implementation, fake (shapes without data) and
autograd, and clear refusals of what the library does not do: second derivatives and vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("fastar", "FRAGMENT")


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
    """Register ``fastar::name`` and return its callable overload.

    Without `backward` the op is itself a backward: differentiating through it raises an error that says so.
    """
    LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")
    qualified = f"fastar::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    public = name.removesuffix("_backward")
    torch.library.register_autograd(
        qualified, backward or _refuse_second_order(public), setup_context=setup_context, lib=LIBRARY
    )
    torch.library.register_vmap(qualified, _refuse_vmap(public), lib=LIBRARY)
    return getattr(torch.ops.fastar, name).default
