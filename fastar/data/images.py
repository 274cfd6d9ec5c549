"""Image files that the user has: MNIST's IDX, CIFAR-10's binary batches, and folders of PNG."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_CIFAR = 3 * 32 * 32
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """An IDX file, also gzipped: images [N, H, W] or labels [N], as the numbers that it holds."""
    file = Path(path)
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{file}: a damaged gzip file ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or data[3] == 0:
        raise ValueError(f"{file}: no IDX file, it begins with {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{file}: cut short within its header")
    shape = [int.from_bytes(data[k : k + 4], "big") for k in range(4, start, 4)]
    dtype = np.dtype(_IDX_TYPES[data[2]])
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) - start != expected:
        raise ValueError(f"{file}: says {shape}, which are {expected} bytes, and holds {len(data) - start}")
    found = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return torch.from_numpy(found.astype(dtype.newbyteorder("="), copy=True))


def read_cifar10(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary batches (files, or their folder): images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = [f for one in several for f in (sorted(Path(one).glob("*.bin")) if Path(one).is_dir() else [Path(one)])]
    files = [f for f in files if f.name != "test_batch.bin"] or files
    if not files:
        raise ValueError(f"{several[0]}: no .bin file in the folder")
    images, labels = [], []
    for file in files:
        data = torch.frombuffer(bytearray(file.read_bytes()) or bytearray(1), dtype=torch.uint8)
        if len(data) % (_CIFAR + 1):
            raise ValueError(
                f"{file}: {len(data)} bytes, expected a multiple of {_CIFAR + 1}: a label and an image each"
            )
        rows = data.view(-1, _CIFAR + 1)
        if int(rows[:, 0].max()) > 9:
            row = int((rows[:, 0] > 9).int().argmax())
            raise ValueError(f"{file}: record {row} has label {int(rows[row, 0])}, expected 0..9")
        labels.append(rows[:, 0].long())
        images.append(rows[:, 1:].reshape(-1, 3, 32, 32))
    return torch.cat(images), torch.cat(labels)


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
    pictures = []
    for file in files:
        try:
            with Image.open(file, formats=["PNG"]) as opened:
                mode = opened.mode
                picture = np.asarray(opened.convert("L" if mode in ("1", "L") else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{file}: no PNG that can be read ({error})") from error
        if mode not in ("1", "L", "P", "RGB"):
            raise ValueError(f"{file}: expected 8 bits per channel, grey or RGB without transparency, got {mode}")
        pictures.append(picture)
        if picture.shape[:2] != pictures[0].shape[:2]:
            raise ValueError(
                f"{file}: {picture.shape[1]}x{picture.shape[0]} pixels, the first one, {files[0].name}, has "
                f"{pictures[0].shape[1]}x{pictures[0].shape[0]}"
            )
    colour = any(one.ndim == 3 for one in pictures)
    if colour:
        pictures = [one if one.ndim == 3 else np.repeat(one[..., None], 3, 2) for one in pictures]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return torch.from_numpy(np.stack(pictures))[:, None]
