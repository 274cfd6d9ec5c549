"""fastar: fused kernels and native samplers for autoregressive models, behind PyTorch modules.

The distribution is called ``fastar-kernels``; the import name is ``fastar``.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Read by fastar._identity: another distribution also installs a package of this name.
DISTRIBUTION = "fastar-kernels"
__version__ = "0.1.0"

# In a checkout kernels/, csrc/ and bench/ stand beside this folder instead of inside it; with the root on the path they
# import as fastar.kernels, fastar.csrc and fastar.bench all the same.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")) and os.path.isdir(os.path.join(os.path.dirname(_here), "kernels")):
    __path__.append(os.path.dirname(_here))

from fastar import _identity  # noqa: E402

_identity.warn_if_shared()

_SUBPACKAGES = (
    "anomaly",
    "completion",
    "data",
    "distributions",
    "models",
    "native",
    "nn",
    "ops",
    "reference",
    "sampling",
)


def __getattr__(name: str) -> Any:
    # Submodules load on first use, so that `import fastar` costs nothing beyond this file.
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastar.{name}")
    raise AttributeError(f"module 'fastar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES])
