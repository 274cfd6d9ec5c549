"""Checkpoints: whole or refused, and a failed save leaves the old one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastar.models import FVSBN, NADE, by_name, checkpoint, load


def _weights(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


def test_a_new_checkpoint_takes_the_old_ones_place(tmp_path: Path) -> None:
    FVSBN(3).save_pretrained(tmp_path)
    FVSBN(5).save_pretrained(tmp_path)
    assert FVSBN.from_pretrained(tmp_path).dim == 5
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_checkpoint_survives_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    old = FVSBN(4)
    torch.nn.init.normal_(old.linear.weight)
    old.save_pretrained(tmp_path)
    calls = 0
    replace = os.replace

    def fail(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"No space left"):
        FVSBN(6).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert torch.equal(FVSBN.from_pretrained(tmp_path).linear.weight, old.linear.weight)
    FVSBN(6).save_pretrained(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_is_refused(tmp_path: Path) -> None:
    NADE(4, 3).save_pretrained(tmp_path)
    data = _weights(tmp_path).read_bytes()
    _weights(tmp_path).write_bytes(data[:-10])
    with pytest.raises(
        ValueError, match=r"safetensors: not the bytes that config.json speaks of; damaged or cut short"
    ):
        load(tmp_path)
    _weights(tmp_path).unlink()
    with pytest.raises(ValueError, match=r"named by config.json, and cannot be read"):
        load(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[:-20])
    with pytest.raises(ValueError, match=r"config.json: not JSON, so damaged or cut short"):
        load(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json: no checkpoint there \(No such file or directory\)"):
        load(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"expected 'fastar checkpoint', version 1; this is another program's file"):
        load(tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    FVSBN(4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a checkpoint of NADE, this is one of FVSBN"):
        NADE.from_pretrained(tmp_path)
    header, tensors = checkpoint.read(tmp_path)
    header["config"]["dim"] = 5
    with pytest.raises(ValueError, match=r"the weights are not those of its configuration"):
        FVSBN.from_checkpoint(header, tensors)
    with pytest.raises(ValueError, match=r"model: expected one of .*FVSBN.*, got 'GAN'"):
        by_name("GAN")
