"""A stand-in for the tar library of the same name."""

from __future__ import annotations

import hashlib
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tar_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel laid out like the tar library's: distribution and import name `fastar`, its extension in that folder."""
    files = {
        "fastar/__init__.py": "from .fastar import *\n\n__doc__ = fastar.__doc__\n",
        "fastar/fastar.py": "def open(name):\n    return name\n",
        "fastar/py.typed": "",
        "fastar-0.12.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fastar\nVersion: 0.12.0\n",
        "fastar-0.12.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "fastar-0.12.0.dist-info/RECORD"
    lines = [
        f"{name},sha256={urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for name, text in files.items()
    ]
    path = tmp_path_factory.mktemp("tar") / "fastar-0.12.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "\n".join([*lines, f"{record},,"]) + "\n"}.items():
            archive.writestr(name, text)
    return path
