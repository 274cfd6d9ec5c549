from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from fastar.cli import pictures


def test_tiles_stand_in_rows_with_empty_gaps():
    images = torch.arange(1, 4)[:, None, None].expand(3, 2, 2) / 4
    whole = pictures.tile(images, columns=2, gap_rows=1, gap_columns=1)
    nan = float("nan")
    expected = torch.tensor([
        [0.25, 0.25, nan, 0.5, 0.5],
        [0.25, 0.25, nan, 0.5, 0.5],
        [nan, nan, nan, nan, nan],
        [0.75, 0.75, nan, nan, nan],
        [0.75, 0.75, nan, nan, nan],
    ])  # fmt: skip
    torch.testing.assert_close(whole, expected, equal_nan=True, rtol=0, atol=0)


def test_without_gaps_nothing_is_cut_off():
    images = torch.rand(4, 3, 5)
    whole = pictures.tile(images, columns=4, gap_rows=0, gap_columns=0)
    assert torch.equal(whole, torch.cat(list(images), 1))


@pytest.mark.parametrize(("encoding", "glyphs"), [("utf-8", " ▄▀█"), ("ascii", " .'#")])
def test_without_colours_each_character_holds_two_pixels_in_black_and_white(encoding, glyphs):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    picture = (torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) * 16).round() / 16
    console = Console(file=stream, color_system=None)
    lines = str(pictures.half_blocks(picture, console)).splitlines()
    decoded = torch.tensor(
        [[[glyphs.index(c) // 2 for c in line], [glyphs.index(c) % 2 for c in line]] for line in lines]
    )
    expected = torch.cat([picture >= 0.5, torch.zeros(1, 9, dtype=torch.bool)])
    assert torch.equal(decoded.reshape(8, 9).bool(), expected)


def test_with_colours_each_cell_carries_both_greys():
    console = Console(file=io.StringIO(), color_system="truecolor", force_terminal=True)
    nan = float("nan")
    text = pictures.half_blocks(torch.tensor([[0.0, 1.0, nan, nan], [1.0, nan, 0.2, nan]]), console)
    console.print(text, end="")
    black, white, grey = "0;0;0", "255;255;255", "51;51;51"
    assert console.file.getvalue() == (
        f"\x1b[38;2;{black};48;2;{white}m▀\x1b[0m\x1b[38;2;{white}m▀\x1b[0m\x1b[38;2;{grey}m▄\x1b[0m \n"
    )


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", "▁▁▅▇█"), ("ascii", "  =*#")])
def test_a_sparkline_is_as_high_as_the_signal(encoding, line):
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert pictures.sparkline(torch.tensor([-1.5, -1.0, 0.1, 0.6, 1.0]), console) == line


def test_the_png_holds_text_as_it_is_and_waves(tmp_path):
    from matplotlib.image import imread

    def drawn(name, content):
        pictures.write_png(tmp_path / name, "", [pictures.Panel([content], [pictures.Curve("curve", [1.0])], "bits")])
        return torch.from_numpy(imread(tmp_path / name)[..., :3].copy()).mean(-1)

    # As a formula this would not parse.
    assert (drawn("text.png", pictures.Passage("", [r"$x_{$ \\frac"])) < 0.5).sum() > (
        drawn("none.png", pictures.Passage("", [])) < 0.5
    ).sum() + 100
    loud, silent = (
        (drawn(name, pictures.Waves("", signals, 8000)) < 0.5).sum()
        for name, signals in (("loud.png", torch.rand(2, 500) * 2 - 1), ("silent.png", torch.zeros(2, 500)))
    )
    assert loud > 2 * silent


def test_the_png_shows_the_sheets_dark_on_light(tmp_path):
    from matplotlib.image import imread

    images = torch.zeros(4, 8, 8)
    images[0] = 1
    out = tmp_path / "sheet.png"
    panel = pictures.Panel([pictures.Sheet("all", images, 2)], [pictures.Curve("curve", [3.0, 2.0, 1.0])], "bits")
    pictures.write_png(out, "title", [panel, panel])
    drawn = torch.from_numpy(imread(out)[..., :3].copy()).mean(-1)
    assert tuple(drawn.shape) == (1365, 1300)
    # One of four pictures is black: a block of black pixels, and about three times as many white ones in the sheet.
    black = (drawn < 0.01).nonzero()
    height, width = (black.amax(0) - black.amin(0) + 1).tolist()
    assert min(height, width) > 100
