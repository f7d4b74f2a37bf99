"""Images that are enlarged when they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from shared_models.datasets.dataset import Dataset, Enlarged, Split
from shared_models.datasets.load import load_dataset
from shared_models.errors import DataError

GREY = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


@pytest.mark.parametrize("side", [28, 56, 64, 100])
def test_images_are_what_torch_makes_of_them(side: int) -> None:
    found = Enlarged(GREY, side)[np.arange(5)]
    grey = torch.from_numpy(GREY)[:, None].float()
    expected = interpolate(grey, size=side, mode="bilinear").numpy()
    assert found.shape == (5, 3, side, side)
    assert np.abs(found - expected).max() <= 0.5 + 2 * 255 / 256  # places are in parts of a pixel


def test_an_image_is_the_same_alone_and_among_others() -> None:
    whole = Enlarged(GREY, 64)
    assert np.array_equal(whole[np.array([3])][0], whole[np.arange(5)][3])


def test_a_digest_is_that_of_what_is_held() -> None:
    y = np.zeros(5, np.int64)
    digests = [
        Dataset("x", Split(Enlarged(own, side), y), None).digest()
        for own, side in ((GREY, 64), (GREY, 32), (GREY + 1, 64), (GREY.copy(), 64))
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_fashion_is_as_long_and_as_labelled_as_it_was() -> None:
    try:
        small, large = load_dataset("fashion-mnist"), load_dataset("fashion-64")
    except DataError as error:
        pytest.skip(f"NO FASHION-MNIST: {error}")
    assert large.test is not None
    assert (len(large.train), len(large.test)) == (60_000, 10_000)
    assert np.array_equal(small.train.y, large.train.y)
    assert large.train.x[np.arange(2)].shape == (2, 3, 64, 64)
