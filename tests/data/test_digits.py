from __future__ import annotations

import sys

import pytest
import torch

from fastar.data import digits


def test_every_digit_is_in_exactly_one_part_with_its_own_label():
    from sklearn.datasets import load_digits

    original = load_digits()
    part = digits.load()
    images, labels = torch.cat([part.train, part.test]), torch.cat([part.train_labels, part.test_labels])
    found = torch.cat([images.flatten(1), labels[:, None]], 1).tolist()
    expected = [[*image, label] for image, label in zip(original.data.tolist(), original.target.tolist(), strict=True)]
    assert sorted(found) == sorted(expected)
    assert part.test.shape == (359, digits.HEIGHT, digits.WIDTH)


def test_values_fit_the_levels():
    part = digits.load()
    assert part.train.dtype == part.train_labels.dtype == torch.int64
    assert (part.train.min(), part.train.max()) == (0, digits.LEVELS - 1)
    assert part.test_labels.unique().tolist() == list(range(digits.CLASSES))


def test_the_split_depends_on_the_seed_alone():
    assert torch.equal(digits.load(seed=3).test, digits.load(seed=3).test)
    assert not torch.equal(digits.load(seed=3).test, digits.load(seed=4).test)


@pytest.mark.parametrize(("fraction", "held_out"), [(0, 0), (0.5, 898), (1, 1797)])
def test_size_of_the_test_set(fraction, held_out):
    part = digits.load(test_fraction=fraction)
    assert len(part.test) == len(part.test_labels) == held_out
    assert len(part.train) == 1797 - held_out


@pytest.mark.parametrize(
    ("fraction", "error"), [(-0.1, ValueError), (1.5, ValueError), (float("nan"), ValueError), ("a", TypeError)]
)
def test_an_impossible_fraction_is_refused(fraction, error):
    with pytest.raises(error, match="test_fraction: expected a number from 0 to 1"):
        digits.load(test_fraction=fraction)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'fastar-kernels\[cli\]'"):
        digits.load()
