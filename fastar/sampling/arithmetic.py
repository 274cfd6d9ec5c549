"""Torch arithmetic whose result for one row depends on nothing else: other rows, threads, its place in memory.

A matrix product may sum in another order for another batch size, and torch's sigmoid, SiLU, GELU and ELU use one
formula in the body of a tensor and another in its last few elements. Sums here are folded in halves, element by
element, and functions are composed of those that are computed alike everywhere (exp, expm1, log1p, tanh, erf).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Elements of a temporary that holds the products of a matrix before they are summed.
_TEMPORARY = 1 << 22


def total(terms: Tensor) -> Tensor:
    """The sum over the last dimension: the upper half is added to the lower until one is left."""
    if terms.shape[-1] == 0:
        return terms.new_zeros(terms.shape[:-1])
    while terms.shape[-1] > 1:
        n = terms.shape[-1]
        half = (n + 1) // 2
        lower = terms[..., :half].clone()
        lower[..., : n - half] += terms[..., half:]
        terms = lower
    return terms[..., 0]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``."""
    B, N = x.shape
    M = weight.shape[0]
    outs = max(1, min(M, _TEMPORARY // max(1, N)))
    rows = max(1, _TEMPORARY // max(1, N * outs))
    y = x.new_empty(B, M)
    for b in range(0, B, rows):
        for o in range(0, M, outs):
            y[b : b + rows, o : o + outs] = total(x[b : b + rows, None, :] * weight[None, o : o + outs])
    return y


def sigmoid(z: Tensor) -> Tensor:
    """1 / (1 + exp(-z))."""
    return 1 / (1 + torch.exp(-z))


def elu(z: Tensor) -> Tensor:
    """z where positive, else exp(z) - 1."""
    return torch.where(z > 0, z, torch.expm1(z))


def softmax(z: Tensor) -> Tensor:
    """exp(z) over its sum, along the last dimension."""
    e = torch.exp(z - z.amax(-1, keepdim=True))
    return e / total(e)[..., None]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": lambda z: z.clamp(min=0),
    "elu": elu,
    "concat_elu": lambda z: elu(torch.cat([z, -z], -1)),
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z * math.sqrt(0.5))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z))),
    "tanh": torch.tanh,
    "sigmoid": sigmoid,
    "silu": lambda z: z * sigmoid(z),
    "exp": torch.exp,
    "log": torch.log,
    "softplus": lambda z: z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())),
}
