"""The ``fastar`` command. Each command lives in a module of this folder and is loaded only when it is called.

Standard library only up to that point, so that ``fastar doctor`` answers where anything else is missing or broken.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Imported from the package's own folder: `fastar` itself may be the tar library of the same name here.
from fastar import _identity

COMMANDS = {
    "doctor": "What is installed, what works on this machine, and why the rest does not",
    "bench": "Measure ops against what PyTorch offers, on this machine",
    "demo": "Train three small models, on digits, text and sound, and sample from them",
    "train": "Train a model on a data set or on files, resumably",
    "sample": "Sample from a checkpoint into a PNG, WAV, text or CSV file",
}


def usage() -> str:
    """The text of ``fastar --help``."""
    rows = "".join(f"  {name:<9}{summary}\n" for name, summary in COMMANDS.items())
    return f"usage: fastar COMMAND [OPTIONS]\n\n{rows}\nfastar COMMAND --help says more; fastar --version.\n"


def run(arguments: Sequence[str]) -> int:
    """Run the command line after the program's name; the exit status."""
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage(), end="")
        return 0
    name, rest = arguments[0], list(arguments[1:])
    if name in {"--version", "-V"}:
        print(f"fastar-kernels {_identity.version()}")
        return 0
    if name not in COMMANDS:
        print(f"fastar: no command {name!r}\n\n{usage()}", end="", file=sys.stderr)
        return 2
    if name == "doctor":
        from fastar.cli import doctor

        return doctor.run(rest)
    return _run_typer(name, rest)


def _run_typer(name: str, arguments: list[str]) -> int:
    try:
        _identity.require()
        import typer

        command = getattr(importlib.import_module(f"fastar.cli.{name}"), name)
        app = typer.Typer(add_completion=False)
        app.command(name)(command)
        app(arguments, prog_name=f"fastar {name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "fastar"}:
            raise
        print(
            f"fastar {name} needs {missing!r}, which is not installed: pip install 'fastar-kernels[cli]'",
            file=sys.stderr,
        )
        return 1
    except ImportError as error:
        if not _identity.is_shadowed():
            raise
        print(f"fastar {name}: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
