"""Activations inside kernels: y = act(z) in float32, and act'(z) from what the forward kept.

In PyTorch: fastar.reference.activation. The derivative is written in terms of y where that is possible and of z for
gelu, gelu_tanh and silu, as there. The gate, tanh(a) sigmoid(b), takes two and has functions of its own.
"""

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, without the cancellation near 0."""
    # Taylor's series: on [-1/2, 0] its first omitted term is below 2e-8 of the result, a quarter of float32's rounding.
    series = 1.0 / 5040 + x * (1.0 / 40320)
    series = 1.0 / 720 + x * series
    series = 1.0 / 120 + x * series
    series = 1.0 / 24 + x * series
    series = 1.0 / 6 + x * series
    series = 0.5 + x * series
    return tl.where(x > -0.5, x + x * x * series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """tanh from expm1: relative error of a few units at any size, and no libdevice."""
    e = expm1(-2.0 * tl.abs(x))
    t = -e / (2.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def apply(z, ACTIVATION: tl.constexpr):
    """act(z), z float32."""
    if ACTIVATION == "relu":
        # Written so that a NaN stays one, as in torch.
        y = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "elu":
        y = tl.where(z > 0, z, expm1(tl.minimum(z, 0.0)))
    elif ACTIVATION == "gelu":
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2 u); 1.5957... is 2 sqrt(2 / pi).
        y = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif ACTIVATION == "tanh":
        y = tanh(z)
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(z)
    elif ACTIVATION == "silu":
        y = z * tl.sigmoid(z)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        y = z
    return y


@triton.jit
def derivative(saved, ACTIVATION: tl.constexpr):
    """act'(z) from the saved y, or the saved z for gelu, gelu_tanh and silu; float32."""
    if ACTIVATION == "relu":
        slope = tl.where(saved > 0, 1.0, 0.0)
    elif ACTIVATION == "elu":
        slope = tl.where(saved > 0, 1.0, saved + 1.0)
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        slope = 0.5 * (1.0 + tl.erf(saved * 0.7071067811865476)) + saved * density
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (saved + 0.044715 * saved * saved * saved))
        slope = s + saved * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 3 * 0.044715 * saved * saved)
    elif ACTIVATION == "tanh":
        slope = 1.0 - saved * saved
    elif ACTIVATION == "sigmoid":
        slope = saved * (1.0 - saved)
    else:
        tl.static_assert(ACTIVATION == "silu", "unknown activation")
        s = tl.sigmoid(saved)
        slope = s + saved * s * (1.0 - s)
    return slope


@triton.jit
def gate(a, b):
    """tanh(a) sigmoid(b), float32."""
    return tanh(a) * tl.sigmoid(b)


@triton.jit
def gate_gradients(grad, a, b):
    """The gradients of a and b from that of tanh(a) sigmoid(b), float32."""
    t = tanh(a)
    s = tl.sigmoid(b)
    return grad * s * (1.0 - t * t), grad * t * s * (1.0 - s)
