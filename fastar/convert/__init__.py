"""Other projects' checkpoints as models of this library.

Each function takes a state dict as that project saves it (`torch.load`, `safetensors.torch.load_file`) and returns a
model with those weights. Every tensor is used or named in an error: none is dropped in silence.
"""

from __future__ import annotations

from fastar.convert.gpt2 import gpt2
from fastar.convert.made import made
from fastar.convert.wavenet import wavenet

__all__ = ["gpt2", "made", "wavenet"]
