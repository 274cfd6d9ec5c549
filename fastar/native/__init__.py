"""The native part: loading `fastar._core`, and an explanation where it cannot be loaded."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from fastar import _identity

_identity.require()


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("fastar._core"), None
    except ModuleNotFoundError:
        return None, (
            "fastar._core is not built; install with 'pip install .', or in a checkout run"
            " 'python setup.py build_ext --inplace'"
        )
    except ImportError as error:
        return None, f"fastar._core was built but does not load: {error}"


def why_missing() -> str | None:
    """Why the native part is not there, or None where it is."""
    return _load()[1]


def core() -> ModuleType:
    """The native module; RuntimeError that says what to do where it is missing."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module
