"""The command line itself: its two names, its help, and what it says where something it needs is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import SITE

import fastar
from fastar import cli


def command(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The console script in a fresh process in which the modules named in `without` are not installed."""
    program = f"import sys; sys.modules.update(dict.fromkeys({without!r})); from fastar.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=SITE, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in printed


def test_every_command_has_its_module() -> None:
    folder = Path(cli.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fastar-kernels {fastar.__version__}\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bensh"]) == 2
    assert "no command 'bensh'" in capsys.readouterr().err


def test_module_and_script_are_one_command() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "fastar", "--help"], cwd=SITE, capture_output=True, text=True, timeout=60
    )
    script = command("--help")
    assert module.returncode == script.returncode == 0
    assert module.stdout == script.stdout == cli.usage()


def test_help_loads_neither_torch_nor_a_command() -> None:
    program = (
        "import sys; from fastar.cli import run; run(['--help']);"
        " print({'torch', 'typer', 'rich', 'numpy', 'fastar.cli.bench'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SITE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", ["bench", "demo", "train", "sample"])
@pytest.mark.parametrize("missing", ["typer", "torch"])
def test_a_missing_package_is_named_with_the_remedy(name: str, missing: str) -> None:
    done = command(name, without=(missing,))
    assert done.returncode == 1
    assert f"fastar {name} needs {missing!r}, which is not installed: pip install 'fastar-kernels[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["bench", "demo", "train", "sample"])
def test_commands_show_their_help(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"fastar {name}" in done.stdout
