"""The drawn garments."""

import pytest
import torch

from softreg_ext.data import draw_garments


def test_drawings_follow_the_seed() -> None:
    images, labels = draw_garments(200, 7)
    again, labels_again = draw_garments(200, 7)
    other, _ = draw_garments(200, 8)
    assert images.shape == (200, 28, 28) and images.dtype == torch.uint8
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert not torch.equal(images, other)
    assert labels.bincount().tolist() == [20] * 10


def test_drawings_are_light_garments_on_black() -> None:
    images, _ = draw_garments(300, 0)
    covered = (images > 0).float().mean(dim=(1, 2))
    assert covered.min() > 0.05 and covered.max() < 0.9
    assert (images[:, 0] > 0).float().mean() < 0.25
    assert images.amax(dim=(1, 2)).float().mean() > 100


def test_few_drawings() -> None:
    assert draw_garments(3, 0)[0].shape == (3, 28, 28)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw_garments(0, 0)
