"""MaskedLinear: a linear layer in which a mask removes connections."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.ops.mask_plan import MaskPlan
from fastar.ops.masked_linear import masked_linear, plan_of
from fastar.reference import activation as activations


class MaskedLinear(nn.Module):
    """y = act(x (W * M)^T + b): a linear layer without the connections that M removes.

    M comes from `mask`, bool [out, in], or connects where ``out_degree >= in_degree`` (``>`` when `strict`), in which
    case it is never stored. With neither it is a plain linear layer. Initialised as `torch.nn.Linear`, whose state dict
    it loads and which loads its own; a mask given as such (not degrees) is an additional entry ``mask``, and a state
    dict without it leaves the layer's mask as it is.

    Args:
        in_features: size of each input.
        out_features: size of each output (doubled by ``activation="concat_elu"``).
        bias: learn an additive bias.
        mask: bool [out_features, in_features], True where the connection stays.
        in_degrees: integers [in_features]; with `out_degrees`, integers [out_features].
        out_degrees: see `in_degrees`.
        strict: connect where the degree of the output is greater than the input's, not only equal.
        activation: none, relu, elu, concat_elu, gelu, gelu_tanh, tanh, sigmoid or silu, fused into the product.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mask: Tensor | None = None,
        in_degrees: Tensor | None = None,
        out_degrees: Tensor | None = None,
        strict: bool = False,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _checks.positive("in_features", in_features)
        self.out_features = _checks.positive("out_features", out_features)
        self.activation = activations.check(activation)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.mask: Tensor | None
        self.register_buffer("mask", None)
        self.in_degrees: Tensor | None = None
        self.out_degrees: Tensor | None = None
        self.strict = False
        self.plan = MaskPlan()
        if mask is not None or in_degrees is not None or out_degrees is not None:
            self._connect(mask, in_degrees, out_degrees, strict)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as `torch.nn.Linear` does, from the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def set_mask(self, mask: Tensor | None) -> None:
        """Replace the mask (and forget degrees); None removes it. The layer is unchanged where an error is raised."""
        self._connect(mask, None, None, False)

    def set_degrees(self, in_degrees: Tensor, out_degrees: Tensor, strict: bool = False) -> None:
        """Replace the mask by a pair of degree vectors. The layer is unchanged where an error is raised."""
        self._connect(None, in_degrees, out_degrees, strict)

    def dense_mask(self) -> Tensor:
        """The mask as bool [out_features, in_features], formed for the asking."""
        if self.mask is not None:
            return self.mask
        shape = (self.out_features, self.in_features)
        if self.in_degrees is None or self.out_degrees is None:
            return torch.ones(shape, dtype=torch.bool, device=self.weight.device)
        compare = torch.gt if self.strict else torch.ge
        return compare(self.out_degrees[:, None], self.in_degrees[None, :]).to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return masked_linear(x, self.weight, self.bias, activation=self.activation, plan=self.plan)

    def extra_repr(self) -> str:
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        if self.mask is not None:
            parts.append("mask=given")
        elif self.in_degrees is not None:
            parts.append(f"mask=degrees{', strict=True' if self.strict else ''}")
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        return ", ".join(parts)

    def _connect(
        self, mask: Tensor | None, in_degrees: Tensor | None, out_degrees: Tensor | None, strict: bool
    ) -> None:
        # The plan's tensors and the degrees are no buffers: they are made, not learned, and `to_empty` on a layer
        # that was built on the meta device must not wipe them.
        self.plan = self._beside_weight(
            plan_of(self.weight.shape, mask=mask, in_degrees=in_degrees, out_degrees=out_degrees, strict=strict)
        )
        self.mask = None if mask is None else mask.detach().clone().to(self.weight.device)
        self.in_degrees = None if in_degrees is None else in_degrees.detach().clone()
        self.out_degrees = None if out_degrees is None else out_degrees.detach().clone()
        self.strict = bool(strict)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.plan = self._beside_weight(self.plan)
        return self

    def _beside_weight(self, plan: MaskPlan) -> MaskPlan:
        # On the meta device the plan stays where it is: there it would lose what it says.
        return plan if self.weight.is_meta else plan.to(self.weight.device)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "mask"
        # A mask that travels with weights takes the place of this layer's own; see `set_mask` for what it must be.
        mask = state_dict.get(key)
        if mask is not None:
            try:
                self.set_mask(mask)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"while loading {key!r}: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys:
            missing_keys.remove(key)
