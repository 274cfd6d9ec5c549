"""Image files that the user has: MNIST's IDX, CIFAR-10's binary batches, and folders of PNG.

Each is read block by block into the tensor that it becomes.
"""

from __future__ import annotations

import gzip
import math
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_CIFAR = 3 * 32 * 32
# Bytes, and CIFAR-10's records, that are read at once.
_BLOCK, _RECORDS = 1 << 16, 256
# Deflate makes no file smaller than by this factor.
_MOST_PACKED = 1040
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """An IDX file, also gzipped: images [N, H, W] or labels [N], as the numbers that it holds."""
    file = Path(path)
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return _read_idx(file, raw, file.stat().st_size)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read_idx(file, stream, _MOST_PACKED * file.stat().st_size)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: a damaged gzip file ({error})") from error


def _read_idx(file: Path, stream: BinaryIO | gzip.GzipFile, most: int) -> Tensor:
    # Straight into the tensor; `most` bytes can come, so that a broken header asks for no more memory than that.
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or head[3] == 0:
        raise ValueError(f"{file}: no IDX file, it begins with {head.hex(' ') or 'nothing'}")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError(f"{file}: cut short within its header")
    shape = [int.from_bytes(sizes[k : k + 4], "big") for k in range(0, len(sizes), 4)]
    dtype = np.dtype(_IDX_TYPES[head[2]])
    expected = math.prod(shape) * dtype.itemsize
    said = f"{file}: says {shape}, which are {expected} bytes, and holds"
    if expected > most:
        raise ValueError(f"{said} at most {most - 4 - len(sizes)}")
    found = torch.from_numpy(np.empty(shape, dtype.newbyteorder("=")))
    data = found.numpy()
    held = _fill(stream, data) if data.size else 0
    if held < expected or stream.read(1):
        raise ValueError(f"{said} {held if held < expected else 'more'}")
    if dtype.byteorder == ">" and sys.byteorder == "little":
        data.byteswap(inplace=True)
    return found


def _fill(stream: BinaryIO | gzip.GzipFile, data: np.ndarray[Any, Any]) -> int:
    # Block by block; how many bytes there were.
    flat, done = data.reshape(-1).view(np.uint8), 0
    while done < len(flat):
        block = stream.read(min(_BLOCK, len(flat) - done))
        if not block:
            break
        flat[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    return done


def read_cifar10(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary batches (files, or their folder): images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = [f for one in several for f in (sorted(Path(one).glob("*.bin")) if Path(one).is_dir() else [Path(one)])]
    files = [f for f in files if f.name != "test_batch.bin"] or files
    if not files:
        raise ValueError(f"{several[0]}: no .bin file in the folder")
    counts = []
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % (_CIFAR + 1):
            raise ValueError(f"{file}: {size} bytes, expected a multiple of {_CIFAR + 1}: a label and an image each")
        counts.append(size // (_CIFAR + 1))
    images = torch.empty(sum(counts), 3, 32, 32, dtype=torch.uint8)
    labels = torch.empty(sum(counts), dtype=torch.int64)
    done = 0
    for file, count in zip(files, counts, strict=True):
        with file.open("rb") as stream:
            for start in range(0, count, _RECORDS):
                rows = np.empty((min(_RECORDS, count - start), _CIFAR + 1), np.uint8)
                if _fill(stream, rows) < rows.size:
                    raise ValueError(f"{file}: became shorter while it was read")
                if rows[:, 0].max() > 9:
                    row = int((rows[:, 0] > 9).argmax())
                    raise ValueError(f"{file}: record {start + row} has label {rows[row, 0]}, expected 0..9")
                here = slice(done, done + len(rows))
                labels[here] = torch.from_numpy(rows[:, 0].astype(np.int64))
                images[here] = torch.from_numpy(rows[:, 1:]).view(-1, 3, 32, 32)
                done += len(rows)
    return images, labels


def read_png(folder: str | os.PathLike[str]) -> Tensor:
    """All PNGs of a folder by name, uint8 [N, C, H, W]: 1 channel where all are grey, else 3; one size only."""
    files = sorted(Path(folder).glob("*.png"))
    if not files:
        raise ValueError(f"{folder}: no .png file in it")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            "fastar.data.images: PNGs are read by Pillow, which is missing; pip install 'fastar-kernels[cli]'"
        ) from error

    def opened(file: Path) -> Image.Image:
        try:
            return Image.open(file, formats=["PNG"])
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{file}: no PNG that can be read ({error})") from error

    # The headers first: they say how much memory is needed, and most of what can be wrong.
    size, colour = None, False
    for file in files:
        with opened(file) as picture:
            if picture.mode not in ("1", "L", "P", "RGB"):
                wanted = "8 bits per channel, grey or RGB without transparency"
                raise ValueError(f"{file}: expected {wanted}, got {picture.mode}")
            size = size or picture.size
            if picture.size != size:
                raise ValueError(
                    f"{file}: {picture.width}x{picture.height} pixels, the first one, {files[0].name}, has "
                    f"{size[0]}x{size[1]}"
                )
            colour = colour or picture.mode in ("P", "RGB")
    assert size is not None
    found = torch.empty(len(files), 3 if colour else 1, size[1], size[0], dtype=torch.uint8)
    for n, file in enumerate(files):
        with opened(file) as picture:
            try:
                pixels = np.asarray(picture.convert("RGB" if colour else "L"))
            except (OSError, SyntaxError) as error:
                raise ValueError(f"{file}: no PNG that can be read ({error})") from error
        found[n] = torch.from_numpy(pixels.copy()).view(size[1], size[0], -1).permute(2, 0, 1)
    return found
