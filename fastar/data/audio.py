"""Sounds made by code, mu-law, and WAV files. Signals are float32 [N, T] in [-1, 1]."""

from __future__ import annotations

import math
import os
import wave

import torch
from torch import Tensor

from fastar import _checks

RATE = 8000
# Frames of a file that are read at once.
_BLOCK = 1 << 14
# First three formants in Hz of the vowels a, e, i, o, u as a man speaks them.
FORMANTS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))


def chirps(n: int = 64, length: int = RATE, *, rate: int = RATE, seed: int = 0) -> Tensor:
    """Tones that glide from one frequency to another."""
    generator, t = _start(n, length, rate, seed)
    ends = 100 * torch.exp(torch.rand(n, 2, 1, generator=generator) * math.log(0.4 * rate / 100))
    first, last = ends.unbind(1)
    phase = 2 * math.pi * (first * t + (last - first) * t * t / (2 * length / rate))
    return 0.9 * _faded(torch.sin(phase + 2 * math.pi * torch.rand(n, 1, generator=generator)), rate)


def strings(n: int = 64, length: int = RATE, *, rate: int = RATE, seed: int = 0) -> Tensor:
    """Plucked strings (Karplus and Strong): a loop of noise that is averaged each time it comes round."""
    generator, _ = _start(n, length, rate, seed)
    sounds = []
    for _ in range(n):
        pitch = 80 * 2 ** (3 * float(torch.rand((), generator=generator)))
        period = max(2, round(rate / pitch))
        loop = 2 * torch.rand(period, generator=generator) - 1
        turns = [loop]
        for _ in range(length // period):
            # A sample meets the one before it a turn ago; the first of a turn meets the last of the turn before.
            loop = 0.498 * (loop + torch.cat([turns[-2][-1:] if len(turns) > 1 else loop[-1:], loop[:-1]]))
            turns.append(loop)
        sounds.append(torch.cat(turns)[:length])
    return 0.9 * torch.stack(sounds)


def vowels(n: int = 64, length: int = RATE, *, rate: int = RATE, seed: int = 0) -> Tensor:
    """Sung vowels: the harmonics of a pitch, as strong as three resonances make them."""
    generator, t = _start(n, length, rate, seed)
    pitch = 90 * 2 ** (1.3 * torch.rand(n, 1, generator=generator))
    vibrato = 0.01 * torch.sin(2 * math.pi * 5 * t + 2 * math.pi * torch.rand(n, 1, generator=generator)) / (5 * 2)
    formants = torch.tensor(FORMANTS)[torch.randint(len(FORMANTS), (n,), generator=generator)]
    sound = torch.zeros(n, length)
    for k in range(1, int(rate / 2 / 90)):
        frequency = k * pitch
        gain = (1 / (1 + ((frequency - formants) / 80) ** 2)).sum(1, keepdim=True) / k**0.5
        gain = torch.where(frequency < rate / 2, gain, 0.0)
        sound += gain * torch.sin(2 * math.pi * frequency * (t + vibrato))
    return 0.9 * _faded(sound / sound.abs().amax(1, keepdim=True), rate)


def mu_law(x: Tensor, levels: int = 256) -> Tensor:
    """Signals in [-1, 1] as int64 levels, finer where quiet: sign(x) log(1 + mu |x|) / log(1 + mu), mu = levels - 1."""
    mu = _levels(levels) - 1
    compressed = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    return ((compressed.clamp(-1, 1) + 1) / 2 * mu + 0.5).long()


def from_mu_law(symbols: Tensor, levels: int = 256) -> Tensor:
    """Signals in [-1, 1] of mu-law levels."""
    mu = _levels(levels) - 1
    y = 2 * symbols.float() / mu - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def read_wav(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """A WAV file of 8, 16, 24 or 32 bit integers as float32 [channels, T] in [-1, 1], and its rate."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            wanted = count * channels * width
            # A broken header asks for no more memory than the file has bytes.
            x = torch.empty(channels, count if wanted <= os.path.getsize(path) else 0)
            done = 0
            while block := file.readframes(_BLOCK):
                frames = len(block) // (channels * width)
                if frames == 0 or done + frames > x.shape[1]:
                    break
                samples = _samples(block[: frames * channels * width], width)
                x[:, done : done + frames] = samples.view(-1, channels).T
                done += frames
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: no WAV file of integers ({error or 'it ends too early'})") from error
    if done < count:
        raise ValueError(f"{path}: cut short: its header speaks of {wanted} bytes of sound")
    return x, rate


def _samples(data: bytes, width: int) -> Tensor:
    # Numbers of so many bytes, little endian, as floats in [-1, 1]; single bytes have no sign.
    parts = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width)
    if width == 1:
        return (parts[:, 0].float() - 128) / 128
    whole = sum(parts[:, k].long() << (8 * k) for k in range(width))
    assert isinstance(whole, Tensor)
    half = 1 << (8 * width - 1)
    return (torch.where(whole >= half, whole - 2 * half, whole) / half).float()


def write_wav(path: str | os.PathLike[str], x: Tensor, rate: int = RATE) -> None:
    """Write [T] or [channels, T] in [-1, 1] as 16 bit integers; louder values are clipped."""
    x = x[None] if x.dim() == 1 else x
    data = (x.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous()
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(len(x))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(data.numpy().tobytes())


def _levels(levels: int) -> int:
    if _checks.positive("levels", levels) < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")
    return levels


def _start(n: int, length: int, rate: int, seed: int) -> tuple[torch.Generator, Tensor]:
    for name, value in (("n", n), ("length", length), ("rate", rate)):
        _checks.positive(name, value)
    return torch.Generator().manual_seed(seed), torch.arange(length) / rate


def _faded(x: Tensor, rate: int) -> Tensor:
    """Without clicks: ten milliseconds up at the start and down at the end."""
    edge = max(1, min(x.shape[1] // 2, rate // 100))
    ramp = torch.linspace(0, 1, edge)
    x = x.clone()
    x[:, :edge] *= ramp
    x[:, -edge:] *= ramp.flip(0)
    return x
