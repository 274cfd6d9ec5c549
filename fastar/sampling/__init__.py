"""The sampling engine: step programs, and executors that run them from the first position to the last."""

from fastar import _identity

_identity.require()

from fastar.sampling.builder import Builder  # noqa: E402
from fastar.sampling.dimensions import dimensions  # noqa: E402
from fastar.sampling.fuse import fuse  # noqa: E402
from fastar.sampling.image import image  # noqa: E402
from fastar.sampling.instructions import Head  # noqa: E402
from fastar.sampling.lower import sequence  # noqa: E402
from fastar.sampling.program import Program, Value  # noqa: E402
from fastar.sampling.sampler import Sampler, SampleResult  # noqa: E402
from fastar.sampling.trace import LoweringError, register  # noqa: E402

__all__ = [
    "Builder",
    "Head",
    "LoweringError",
    "Program",
    "SampleResult",
    "Sampler",
    "Value",
    "dimensions",
    "fuse",
    "image",
    "register",
    "sequence",
]
