"""csrc/common/philox.h, compiled as plain C++: the host's half of the header that the device shares."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import philox_oracle
import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("philox") / "philox_words"
    source = HERE / "philox_words.cpp"
    # The known answers are assertions of this very compilation.
    subprocess.run(
        ["c++", "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", str(source), "-o", str(out)], check=True
    )
    return out


def test_oracle_gives_the_known_answers() -> None:
    assert philox_oracle.words(0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 2**32 - 1
    assert philox_oracle.words(2**64 - 1, 2**64 - 1, ones, ones) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox_oracle.discrete(1234567890123, 5, 7, 2) == 0.16126304864883423


def test_header_agrees_with_the_oracle(program: Path) -> None:
    generator = random.Random(0)

    def up_to(bits: int) -> int:
        # Small and large values alike, so that both halves of every 64-bit number matter.
        return generator.getrandbits(generator.randint(1, bits))

    draws = [(up_to(64), up_to(64), up_to(32), up_to(32)) for _ in range(500)]
    text = "\n".join(" ".join(map(str, draw)) for draw in draws)
    lines = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(draws)
    for draw, line in zip(draws, lines, strict=True):
        *found, discrete, continuous = line.split()
        assert tuple(map(int, found)) == philox_oracle.words(*draw)
        assert float.fromhex(discrete) == philox_oracle.discrete(*draw)
        assert float.fromhex(continuous) == philox_oracle.continuous(*draw)
