"""Layers over the fused ops, state-dict compatible with their torch.nn twins."""

from fastar import _identity

_identity.require()

from fastar.nn.causal_conv1d import CausalConv1d  # noqa: E402
from fastar.nn.causal_self_attention import CausalSelfAttention  # noqa: E402
from fastar.nn.diagonal_bilstm import DiagonalBiLSTM  # noqa: E402
from fastar.nn.diagonal_lstm import DiagonalLSTM  # noqa: E402
from fastar.nn.gated_pixelcnn_block import GatedPixelCNNBlock  # noqa: E402
from fastar.nn.masked_conv2d import MaskedConv2d  # noqa: E402
from fastar.nn.masked_linear import MaskedLinear  # noqa: E402
from fastar.nn.nade_layer import NADELayer  # noqa: E402
from fastar.nn.row_lstm import RowLSTM  # noqa: E402
from fastar.nn.shifted_conv2d import ShiftedConv2d  # noqa: E402
from fastar.nn.vertical_stack_conv2d import VerticalStackConv2d  # noqa: E402
from fastar.nn.wavenet_block import WaveNetBlock  # noqa: E402

__all__ = [
    "CausalConv1d",
    "CausalSelfAttention",
    "DiagonalBiLSTM",
    "DiagonalLSTM",
    "GatedPixelCNNBlock",
    "MaskedConv2d",
    "MaskedLinear",
    "NADELayer",
    "RowLSTM",
    "ShiftedConv2d",
    "VerticalStackConv2d",
    "WaveNetBlock",
]
