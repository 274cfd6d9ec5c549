"""Completion: what is known stays, and what is drawn follows the conditional law."""

from __future__ import annotations

import pytest
import torch
from model_properties import assert_frequencies, every_x, index_of, randomise

from fastar import completion
from fastar.data import audio
from fastar.models import MADE, CharRNN, ConvNADE, DocNADE


def test_inpainting_an_orderless_model_is_exact() -> None:
    model = randomise(ConvNADE((2, 2), 6), 2.0)
    known = torch.tensor([[[False, True], [False, True]]])
    x = torch.tensor([[[[0, 1], [0, 0]]]])
    drawn = completion.inpaint(model, x.expand(4000, -1, -1, -1), known, seed=1)
    assert isinstance(drawn, torch.Tensor)
    pictures = every_x((1, 2, 2), 2)
    agrees = ((pictures == x) | ~known).flatten(1).all(1)
    with torch.no_grad():
        p = model.log_prob(pictures, order=[1, 3, 0, 2]).double().exp()  # type: ignore[call-arg]
    p = torch.where(agrees, p, 0.0)
    assert_frequencies(index_of(drawn, 2), p / p.sum())


def test_outpainting_keeps_the_frame() -> None:
    model = randomise(ConvNADE((4, 5), 4))
    x = torch.randint(0, 2, (3, 1, 2, 3))
    drawn = completion.outpaint(model, x, 1, 2, seed=1)
    assert isinstance(drawn, torch.Tensor)
    assert drawn.shape == (3, 1, 4, 5)
    assert torch.equal(drawn[:, :, 1:3, 2:5], x)
    with pytest.raises(ValueError, match=r"x: 2x3 pixels at \(1, 3\) do not fit into 4x5"):
        completion.outpaint(model, x, 1, 3)


def test_inpainting_reals_and_bad_masks() -> None:
    model = randomise(MADE(3, 8, "normal"), 0.5)
    x = torch.randn(4, 3)
    drawn = completion.inpaint(model, x, torch.tensor([True, False, True]), seed=1)
    assert isinstance(drawn, torch.Tensor)
    assert torch.equal(drawn[:, ::2], x[:, ::2])
    assert not torch.equal(drawn[:, 1], x[:, 1])
    with pytest.raises(ValueError, match=r"known: expected shape \[3\] or \[4, 3\], got \[2\]"):
        completion.inpaint(model, x, torch.ones(2).bool())
    with pytest.raises(TypeError, match=r"known: expected dtype bool"):
        completion.inpaint(model, x, torch.ones(3))


def test_text_and_sound_continue() -> None:
    model = randomise(DocNADE(3, 4))
    texts = completion.continue_text(model, "ab", "abc", 6, n=5, seed=1)
    assert len(set(texts)) > 1
    assert all(one.startswith("ab") and len(one) == 6 for one in texts)
    with pytest.raises(ValueError, match=r"length: expected at least the prompt's 2, got 1"):
        completion.continue_text(model, "ab", "abc", 1)
    rnn = randomise(CharRNN(256, 4))
    prompt = audio.chirps(1, 12)[0]
    sounds = completion.continue_audio(rnn, prompt, 20, n=2, seed=1)
    assert sounds.shape == (2, 20)
    assert torch.equal(sounds[:, :12], prompt.expand(2, 12))
    with pytest.raises(ValueError, match=r"model: expected one of mu-law symbols"):
        completion.continue_audio(MADE(3, 4, "normal"), prompt, 20)
