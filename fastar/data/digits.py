"""The 1797 handwritten digits of 8x8 pixels that come inside scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HEIGHT = WIDTH = 8
CLASSES = 10
# A pixel counts the dark dots, 0 to 16, of a 4x4 square of the scanned bitmap.
LEVELS = 17


class Digits(NamedTuple):
    """Images (int64 [N, HEIGHT, WIDTH], values below LEVELS) and their digits (int64 [N]), split in two."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """All digits, shuffled by `seed` and split; the last `test_fraction` of them, rounded, are the test set."""
    if isinstance(test_fraction, bool) or not isinstance(test_fraction, (int, float)):
        raise TypeError(f"test_fraction: expected a number from 0 to 1, got {type(test_fraction).__name__}")
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a number from 0 to 1, got {test_fraction}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "fastar.data.digits: the digits come with scikit-learn, which is missing; pip install 'fastar-kernels[cli]'"
        ) from error
    found = load_digits()
    images, labels = torch.from_numpy(found.images).long(), torch.from_numpy(found.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order.tensor_split([len(images) - round(test_fraction * len(images))])
    return Digits(images[train], labels[train], images[test], labels[test])
