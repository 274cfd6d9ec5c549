"""`fastar train` and `fastar sample`: learning, resuming as if nothing had happened, and what is wrong in words."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import SITE

from fastar import cli
from fastar.cli import _training
from fastar.cli._training import Plan, Trainer, start
from fastar.data import sets
from fastar.models import checkpoint, load

PLAN = Plan(epochs=3, batch=100, learning_rate=0.01, weight_decay=0.0, seed=1)


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.run([str(one) for one in arguments])
    return int(ended.value.code or 0)


def _trainer(folder: Path) -> Trainer:
    data = sets.find("chain")
    return Trainer(start("MADE", data, {"hidden": [24], "num_masks": 2}, None, PLAN, "cpu"), data, PLAN, folder)


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _trainer(tmp_path / "whole")
    assert not whole.resume()
    assert whole.run(lambda p: None)
    monkeypatch.setattr(_training, "EVERY", 0.0)
    for last in (17, 55, 90):

        def kill(p: _training.Progress, last: int = last) -> None:
            # The checkpoint of the step before is what is left.
            if p.step == last:
                monkeypatch.setattr(_training, "EVERY", 1e9)
            if p.step == last + 1:
                raise KilledError

        broken = _trainer(tmp_path / "broken")
        assert broken.resume() == (last > 17)
        with pytest.raises(KilledError):
            broken.run(kill)
        monkeypatch.setattr(_training, "EVERY", 0.0)
    broken = _trainer(tmp_path / "broken")
    assert broken.resume()
    assert broken.progress.step == 90

    def killed() -> float:
        raise KilledError

    monkeypatch.setattr(broken, "evaluate", killed)
    with pytest.raises(KilledError):
        broken.run(lambda p: None)
    last_one = _trainer(tmp_path / "broken")
    assert last_one.resume()
    assert last_one.progress.step == 120
    assert last_one.run(lambda p: None)
    assert last_one.progress == whole.progress
    for name, t in whole.model.state_dict().items():
        assert torch.equal(last_one.model.state_dict()[name], t), name
    for name, t in load(tmp_path / "whole").state_dict().items():
        assert torch.equal(load(tmp_path / "broken").state_dict()[name], t), name


def test_the_command_trains_resumes_and_samples_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    command = ("train", "MADE", "--data", "digits-binary", "--out", folder, "--set", "hidden=[64]", "--epochs", 4)
    assert _run(*command, "--minutes", 0.00001) == 0
    assert "time is up at step" in capsys.readouterr().out
    assert _run(*command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "carrying on from step" in out
    assert "bits/dim after epoch" in out
    assert (folder / "curve.png").stat().st_size > 5000
    with Image.open(folder / "curve.png") as curve:
        assert curve.size[0] > 500
    model = load(folder)
    test = sets.find("digits-binary").test.flatten(1)
    assert model.eval().nll_bits_per_dim(test).mean().item() < 0.75
    assert _run("sample", folder, "--n", 9, "--seed", 3) == 0
    assert "9 samples in" in capsys.readouterr().out
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.size == ((3 * 8 + 2) * 14, (3 * 8 + 2) * 14)
        pixels = torch.from_numpy(np.array(sheet.convert("L")))
    drawn = model.sample(9, seed=3)
    assert isinstance(drawn, torch.Tensor)
    assert torch.equal((pixels[7 : 8 * 14 : 14, 7 : 8 * 14 : 14] > 127).long(), drawn[0].view(8, 8))
    assert _run(*command, "--lr", 0.5) == 2
    assert "holds another training (learning_rate 0.002, here 0.5); take another folder, or --restart" in (
        capsys.readouterr().err
    )
    assert _run(*command, "--restart", "--epochs", 1) == 0


@pytest.mark.parametrize(
    ("model", "data", "settings"),
    [
        ("MAF", "mixture", ["hidden=[16]", "layers=2"]),
        ("RNADE", "rings", ["hidden=16", "components=3"]),
        ("DocNADE", "topics", ["hidden=8"]),
        ("CharRNN", "vowels", ["hidden=8"]),
        ("WaveNet", "strings", ["residual=4", "skip=4", "dilations=2"]),
        ("Transformer", "topics", ["width=8", "heads=2", "layers=1"]),
        ("PixelCNN", "digits-binary", ["width=4", "depth=1"]),
        ("PixelCNNpp", "digits", ["width=4", "components=2"]),
        ("PixelRNN", "digits-binary", ["hidden=2", "depth=1"]),
        ("WaveNet", "vowels", ["residual=4", "skip=4", "dilations=2"]),
        ("Transformer", "digits-binary", ["width=8", "layers=1", "heads=2"]),
        ("DeepNADE", "chain", ["hidden=[8]"]),
    ],
)
def test_every_kind_of_data(
    tmp_path: Path, model: str, data: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [part for one in settings for part in ("--set", one)]
    folder = tmp_path / "run"
    command = ("train", model, "--data", data, "--out", folder, "--minutes", 0.004, "--length", 16, *pairs)
    assert _run(*command) == 0, capsys.readouterr().err
    about, _ = checkpoint.read(folder / "training")
    assert about["model"] == model
    assert _run("sample", folder, "--n", 3) == 0, capsys.readouterr().err
    kind = about["data"]["kind"]
    written = folder / f"samples{ {'image': '.png', 'audio': '.wav', 'text': '.txt', 'table': '.csv'}[kind] }"
    if kind == "audio":
        with wave.open(str(written)) as file:
            assert (file.getframerate(), file.getnframes()) == (8000, 3 * 16)
    elif kind == "text":
        assert [len(one) for one in written.read_text()[:-1].split("\n\n-----\n\n")] == [16] * 3
        # Beyond a Transformer's context too.
        assert _run("sample", folder, "--n", 1, "--length", 40) == 0, capsys.readouterr().err
        assert len(written.read_text()) == 41
    elif kind == "table":
        with written.open() as file:
            assert [len(row) for row in csv.reader(file)] == [about["data"]["shape"][0]] * 3
    else:
        assert written.stat().st_size > 100


def test_texts_begin_with_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    command = ("train", "CharRNN", "--data", "topics", "--out", folder, "--minutes", 0.002, "--set", "hidden=8")
    assert _run(*command) == 0, capsys.readouterr().err
    assert _run("sample", folder, "--length", 0) == 2
    assert "length: expected at least 1 for CharRNN, got 0" in capsys.readouterr().err
    asked = ("sample", folder, "--n", 3, "--length", 20, "--prompt")
    assert _run(*asked, "The ") == 0, capsys.readouterr().err
    texts = (folder / "samples.txt").read_text()[:-1].split("\n\n-----\n\n")
    assert all(one.startswith("The ") and len(one) == 20 for one in texts)
    for prompt, message in (
        ("\u20ac", "text: '\u20ac' is none of"),
        ("a" * 21, "--prompt: 21 symbols, in texts of 20"),
    ):
        assert _run(*asked, prompt) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_more_than_it_says(tmp_path: Path) -> None:
    # Checkpoints all the time, so that most kills meet one that is being written.
    often = "import sys; from fastar.cli import _training, run; _training.EVERY = 0.0; run(sys.argv[1:])"
    command = [sys.executable, "-c", often, "train", "MADE", "--data", "digits-binary", "--epochs", "20"]
    command += ["--set", "hidden=[64]", "--threads", "1"]
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    subprocess.run([*command, "--out", str(whole)], check=True, cwd=SITE, capture_output=True)
    for seconds in (3.0, 4.0, 3.5):
        process = subprocess.Popen([*command, "--out", str(broken)], cwd=SITE, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
        if broken.exists():
            # What is there is whole, whatever the moment.
            for folder in (broken, broken / "training"):
                if (folder / checkpoint.CONFIG).exists():
                    checkpoint.read(folder)
    subprocess.run([*command, "--out", str(broken)], check=True, cwd=SITE, capture_output=True)
    for name, t in load(whole).state_dict().items():
        assert torch.equal(load(broken).state_dict()[name], t), name


@pytest.mark.parametrize(
    ("model", "settings", "argument"),
    [("MADE", ["hidden=[8]"], "cond_dim"), ("Transformer", ["width=8", "layers=1", "heads=2"], "classes")],
)
def test_classes_are_learned_and_asked_for(
    tmp_path: Path, model: str, settings: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [part for one in settings for part in ("--set", one)]
    folder, table = tmp_path / "run", tmp_path / "drawn.csv"
    command = ("train", model, "--data", "digits-binary", "--labels", "--out", folder, "--minutes", 0.004)
    assert _run(*command, *pairs) == 0, capsys.readouterr().err
    trained = load(folder).eval()
    assert trained.to_config()[argument] == 10
    for option, classes in (((), torch.arange(12) % 10), (("--label", 3), torch.full((12,), 3))):
        assert _run("sample", folder, "--n", 12, "--seed", 5, "--out", table, *option) == 0, capsys.readouterr().err
        with table.open() as file:
            found = torch.tensor([[int(one) for one in row] for row in csv.reader(file)])
        assert torch.equal(found, trained.sample(12, seed=5, cond=classes, length=64 if model != "MADE" else None))  # type: ignore[arg-type]
    assert _run("sample", folder) == 0
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.size[0] == (10 * 9 - 1) * 14
    capsys.readouterr()
    assert _run("sample", folder, "--label", 10) == 2
    assert "--label: expected 0..9, got 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["GAN"], "model: expected one of"),
        (["MADE", "--data", "mnist"], "data: 'mnist' is no file or folder"),
        (["MADE", "--set", "hidden"], "--set: expected NAME=VALUE, got 'hidden'"),
        (["MADE", "--set", "depth=3"], "config: MADE has no depth; it has dim, hidden"),
        (["MADE", "--epochs", "0"], "--epochs: expected a positive integer, got 0"),
        (["MADE", "--lr", "-1"], "--lr: expected a positive number"),
        (["MAF"], "data: MAF takes real numbers, and the data are integer levels"),
        (["NADE", "--data", "rings"], "data: NADE takes integer levels, and rings holds real numbers"),
        (["PixelCNN", "--data", "topics"], "data: PixelCNN takes images, and topics holds text"),
        (["MADE", "--threads", "0"], "--threads: expected a positive integer, got 0"),
        (["MADE", "--minutes", "-1"], "--minutes: expected a positive number"),
        (["MADE", "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["FVSBN"], "x: expected 0..1; at [0, "),
        (["NADE", "--labels"], "--labels: NADE is conditioned on nothing"),
        (["MADE", "--labels", "--data", "topics"], "data: topics has no labels"),
        (["MADE", "--preset", "mnist-1x500"], "x: expected shape [B, 784], got [1, 64]"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("train", *arguments, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_sampling_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert _run("train", "MADE", "--out", tmp_path / "file") == 2
    assert "--out: expected a folder" in capsys.readouterr().err
    assert _run("sample", tmp_path / "nothing") == 2
    assert "config.json: no checkpoint there" in capsys.readouterr().err
    _trainer(tmp_path / "run").run(lambda p: None, seconds=0.5)
    model = start("FVSBN", sets.find("chain"), {}, None, PLAN, "cpu")
    model.save_pretrained(tmp_path / "plain")
    assert _run("sample", tmp_path / "plain", "--n", 2) == 0
    capsys.readouterr()
    for arguments, message in (
        (["--out", tmp_path / "a.wav"], "--out: samples of this model are written to .csv"),
        (["--prompt", "a"], "--prompt: this model was trained on table, not on text"),
        (["--label", 1], "--label: this FVSBN was not trained on labels"),
        (["--n", 0], "--n: expected a positive integer"),
        (["--length", 4], "--length: FVSBN has 16 positions of its own"),
        (["--temperature", 0], "temperature: expected a positive finite number"),
        (["--out", tmp_path / "no" / "a.csv"], "--out: expected a file in a folder that exists"),
    ):
        assert _run("sample", tmp_path / "plain", *arguments) == 2
        assert message in capsys.readouterr().err
