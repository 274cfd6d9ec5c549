"""Telling this package apart from the tar library that installs the same import name.

The package index has a distribution called ``fastar`` (bindings for reading and writing tar files) whose files land in
the same ``site-packages/fastar`` folder as ours. Whichever was installed last owns ``__init__.py``. Both cases are
named plainly here instead of failing later on a missing attribute.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from pathlib import Path

REMEDY = (
    "use separate environments, or run 'pip uninstall fastar' and then "
    "'pip install --force-reinstall --no-deps fastar-kernels'"
)


def tar_library_version() -> str | None:
    """Version of the tar library installed over or under this package, None where it is absent."""
    try:
        return importlib.metadata.version("fastar")
    except importlib.metadata.PackageNotFoundError:
        return None


def version() -> str:
    """Our own version, whichever of the two distributions answers to ``import fastar``."""
    if not is_shadowed():
        return str(sys.modules["fastar"].__version__)
    try:
        return importlib.metadata.version("fastar-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def is_shadowed() -> bool:
    """True where ``import fastar`` gave the tar library's ``__init__`` instead of ours."""
    package = sys.modules.get("fastar")
    return package is not None and getattr(package, "DISTRIBUTION", None) != "fastar-kernels"


def problem() -> str | None:
    """One sentence about the clash of names, or None where there is none."""
    if is_shadowed():
        return (
            "'import fastar' found the tar library of the same name (distribution 'fastar'"
            f" {tar_library_version() or 'of unknown version'}), which was installed over fastar-kernels; {REMEDY}"
        )
    folder = Path(__file__).parent
    # Its extension module lies in our own folder where both were installed there, whatever the metadata says.
    found = tar_library_version()
    if any(folder.glob("fastar.*")):
        return (
            f"the tar library 'fastar' {found or 'of unknown version'} and fastar-kernels are installed in one"
            f" environment and share the folder {folder}; 'import fastar' means fastar-kernels here, and the tar"
            f" library cannot be imported; {REMEDY}"
        )
    if found is not None:
        return (
            f"the tar library 'fastar' {found} is installed in this environment; 'import fastar' means fastar-kernels"
            f" here ({folder}) and the tar library elsewhere; use separate environments, or run 'pip uninstall fastar'"
        )
    return None


def require() -> None:
    """Raise ImportError with the remedy where our own ``__init__`` was overwritten."""
    if is_shadowed():
        raise ImportError(problem())


def warn_if_shared() -> None:
    """Warn where both distributions are installed and ours is in front."""
    message = problem()
    if message is not None:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
