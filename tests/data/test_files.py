"""Files that a user has: read back what was written, and errors that say what is wrong with a broken one."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from fastar.data import audio, images, sets, tables, text


def _idx(path, array, code=8):
    data = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(data)
    return path


def test_idx(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    path = _idx(tmp_path / "train-images-idx3-ubyte", pictures)
    assert torch.equal(images.read_idx(path), torch.from_numpy(pictures))
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert torch.equal(images.read_idx(packed), torch.from_numpy(pictures))
    floats = np.linspace(0, 1, 6, dtype=">f4").reshape(2, 3)
    assert torch.equal(images.read_idx(_idx(tmp_path / "f", floats, 13)), torch.from_numpy(floats.astype(np.float32)))
    assert sets.find(str(packed)).train.shape == (4, 1, 4, 3)
    with pytest.raises(ValueError, match=r"data: .* has no labels"):
        sets.find(str(path), labels=True)
    labels = _idx(tmp_path / "train-labels-idx1-ubyte", np.array([3, 0, 1, 2, 1], dtype=np.uint8))
    found = sets.find(str(path), labels=True)
    assert found.train_labels.tolist() == [3, 0, 1, 2]
    assert found.test_labels.tolist() == [1]
    assert found.classes == 4
    assert sets.find(str(path)).classes is None
    _idx(labels, np.zeros(4, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"idx1-ubyte: expected 5 classes from 0, got \[4\] numbers"):
        sets.find(str(path), labels=True)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"says \[5, 4, 3\], which are 60 bytes, and holds 57"):
        images.read_idx(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"no IDX file, it begins with 47 49 46 38"):
        images.read_idx(path)
    path.write_bytes(bytes([0, 0, 8, 2]) + struct.pack(">2i", 2**30, 2**30))
    with pytest.raises(ValueError, match=r"which are 1152921504606846976 bytes, and holds at most 0"):
        images.read_idx(path)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a damaged gzip file"):
        images.read_idx(packed)


def test_cifar10(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 9], dtype=torch.uint8)
    pixels = torch.randint(0, 256, (2, 3072), generator=generator).to(torch.uint8)
    record = torch.cat([labels[:, None], pixels], 1).numpy().tobytes()
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(record)
    found, classes = images.read_cifar10(tmp_path)
    assert found.shape == (4, 3, 32, 32)
    assert classes.tolist() == [3, 9, 3, 9]
    assert torch.equal(found[:2].flatten(1), pixels)
    assert len(images.read_cifar10(tmp_path / "test_batch.bin")[0]) == 2
    assert sets.find(str(tmp_path)).levels == 256
    assert sets.find(str(tmp_path), labels=True).train_labels.tolist() == [3, 9, 3]
    (tmp_path / "data_batch_1.bin").write_bytes(record[:-1])
    with pytest.raises(ValueError, match=r"data_batch_1.bin: 6145 bytes, expected a multiple of 3073"):
        images.read_cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x0a" + record[1:])
    with pytest.raises(ValueError, match=r"record 0 has label 10, expected 0..9"):
        images.read_cifar10(tmp_path)


def test_png_folder(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert torch.equal(images.read_png(tmp_path)[0, 0], torch.from_numpy(grey))
    Image.fromarray(colour).save(tmp_path / "b.png")
    found = images.read_png(tmp_path)
    assert found.shape == (2, 3, 3, 4)
    assert torch.equal(found[0, 2], torch.from_numpy(grey))
    assert torch.equal(found[1].permute(1, 2, 0), torch.from_numpy(colour))
    Image.fromarray(grey.T.copy()).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c.png: 3x4 pixels, the first one, a.png, has 4x3"):
        images.read_png(tmp_path)
    Image.fromarray(np.zeros((3, 4, 4), dtype=np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c.png: expected 8 bits per channel, grey or RGB .*, got RGBA"):
        images.read_png(tmp_path)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"c.png: no PNG that can be read"):
        images.read_png(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .png file in it"):
        images.read_png(tmp_path / "empty")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav(tmp_path, width):
    path = tmp_path / "a.wav"
    values = torch.tensor([[-1.0, 0.0], [0.5, -0.5], [0.25, 0.75]])
    whole = (values * (1 << (8 * width - 1))).round().long()
    data = b"".join(
        bytes([int(one) + 128]) if width == 1 else int(one).to_bytes(width, "little", signed=True)
        for one in whole.flatten()
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(data)
    found, rate = audio.read_wav(path)
    assert rate == 8000
    torch.testing.assert_close(found, values.T)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"a.wav: cut short"):
        audio.read_wav(path)
    path.write_bytes(b"not a sound")
    with pytest.raises(ValueError, match=r"a.wav: no WAV file of integers"):
        audio.read_wav(path)


def test_written_sound_is_read_back(tmp_path):
    x = audio.strings(1, 3000)[0]
    audio.write_wav(tmp_path / "a.wav", x)
    found, _ = audio.read_wav(tmp_path / "a.wav")
    torch.testing.assert_close(found[0], x, rtol=0, atol=1e-4)
    data = sets.find(str(tmp_path / "a.wav"), 100)
    assert data.train.shape == (27, 100)
    assert data.rate == 8000


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("height, weight\n1,2\n\n3.5,-4e1\n5,6\n")
    rows, header = tables.read_csv(path)
    assert header == ["height", "weight"]
    assert rows.tolist() == [[1, 2], [3.5, -40], [5, 6]]
    assert sets.find(str(path)).kind == "table"
    for content, message in (
        ("1,2\n3\n", r"a.csv, line 2: expected 2 columns, got 1"),
        ("1,2\n3,x\n", r"a.csv, line 2: expected numbers, could not convert string to float: 'x'"),
        ("1,nan\n", r"a.csv, line 1: expected finite numbers"),
        ("1,1e300\n", r"a.csv, line 1: expected finite numbers"),
        ("a,b\n", r"a.csv: no line of numbers in it"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            tables.read_csv(path)


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("banana " * 30)
    found = text.read(path)
    assert found.alphabet == " abn"
    assert found.decode(found.train[:6]) == "banana"
    assert sets.find(str(path), 8).train.shape[1] == 8
    long = "a\u20ac\r\n" * 30000
    path.write_bytes(long.encode())
    found = text.read(path)
    assert found.decode(torch.cat([found.train, found.test])) == long.replace("\r\n", "\n")
    path.write_bytes(long.encode() + b"\xff")
    with pytest.raises(ValueError, match=r"a.txt: not utf-8 text, byte 180000 is 0xff"):
        text.read(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt: not utf-8 text, byte 3 is 0xe9"):
        text.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"a.txt: the file is empty"):
        text.read(path)


def test_files_are_read_in_blocks(tmp_path):
    # What Python and NumPy allocate besides the tensor that comes out is small beside a file.
    size = 4_000_000
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    idx = _idx(tmp_path / "a-idx3-ubyte", noise.reshape(-1, 100, 100))
    packed = tmp_path / "a-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(idx.read_bytes(), 1))
    records = noise[: size // 3073 * 3073].reshape(-1, 3073) % 10
    (tmp_path / "a.bin").write_bytes(records.tobytes())
    audio.write_wav(tmp_path / "a.wav", torch.from_numpy(noise[: size // 2].astype(np.float32)) / 255)
    (tmp_path / "a.txt").write_bytes((noise % 26 + 97).tobytes())
    reads = (
        (idx, images.read_idx, size),
        (packed, images.read_idx, size),
        (tmp_path / "a.bin", images.read_cifar10, 0),
        (tmp_path / "a.wav", audio.read_wav, 0),
        (tmp_path / "a.txt", text.read, 0),
    )
    for path, read, result in reads:
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + size // 2, f"{path.name}: {peak} bytes"
