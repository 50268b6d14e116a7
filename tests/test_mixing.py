"""Targets between classes, and a library's transforms."""

from __future__ import annotations

import math

import kornia.augmentation
import pytest
import torch

from nas.errors import DataError
from nas.tasks import Batch, Library, Mix, from_arrays

CLASSES = 4


def batch(n: int = 12) -> Batch:
    """Images of one number each, which is that of the image."""
    images = torch.arange(float(n))[:, None, None, None].expand(n, 2, 8, 8).clone()
    return Batch((images,), torch.arange(n) % CLASSES)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_label_smoothing():
    (images,), targets = Mix(label_smoothing=0.2)(batch(), CLASSES, rng())
    assert torch.equal(images, batch().inputs[0])
    assert targets[1].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_follow_the_pixels(kind):
    """The share of a class in the target is the share that its image has in the pixels."""
    mixed = 0
    for seed in range(10):
        (images,), targets = Mix(**{kind: 1.0})(batch(), CLASSES, rng(seed))
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            if kind == "mixup":
                others = [j for j in range(12) if j != i]
                fits = []
                for j in others:  # image = (1 - s) i + s j
                    s = (float(image[0, 0, 0]) - i) / (j - i)
                    expected = torch.zeros(CLASSES)
                    expected[i % CLASSES] += 1 - s
                    expected[j % CLASSES] += s
                    fits.append(torch.allclose(expected, target, atol=1e-4))
                assert any(fits) or target[i % CLASSES] == 1
            else:
                shares = torch.zeros(CLASSES)
                for value, count in zip(*image[0].unique(return_counts=True), strict=True):
                    shares[int(value) % CLASSES] += count / 64
                torch.testing.assert_close(target, shares)
            mixed += int(target.max() < 1)
    assert mixed > 20


def test_the_generator_decides():
    mix = Mix(mixup=0.4, cutmix=1.0)
    a, b, c = (mix(batch(), CLASSES, rng(seed)) for seed in (1, 1, 2))
    state = torch.get_rng_state()
    assert torch.equal(a.inputs[0], b.inputs[0])
    assert not torch.equal(a.inputs[0], c.inputs[0])
    mix(batch(), CLASSES, rng(3))
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_no_image_is_not_mixed():
    words = Batch((torch.ones(12, 7), torch.ones(12, 7)), torch.arange(12) % CLASSES)
    assert Mix(label_smoothing=0.2)(words, CLASSES, rng()).inputs == words.inputs
    with pytest.raises(DataError, match=r"must have one input of images .*: got \(12, 7\), \(12, 7\)"):
        Mix(mixup=0.2)(words, CLASSES, rng())


def test_nothing_to_mix_is_false():
    assert not Mix()
    assert Mix(label_smoothing=0.1)


@pytest.mark.parametrize(
    "settings", [{"mixup": -1}, {"cutmix": -0.1}, {"label_smoothing": 1.0}, {"mixup": math.inf}]
)
def test_settings_that_are_none(settings):
    with pytest.raises(DataError, match="`mix` must have"):
        Mix(**settings)


def test_a_library_transforms_by_the_generator():
    augment = Library(kornia.augmentation.auto.RandAugment(n=2, m=9))
    images = torch.rand(6, 3, 16, 16)
    a, b, c = (augment(images, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == images.shape


def test_a_task_augments_before_it_normalises():
    import numpy as np

    seen = []

    def watch(images, generator):
        seen.append((float(images.min()), float(images.max())))
        return images * 0

    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    task = from_arrays(pixels, np.arange(40) % 2, augment=watch, batch_size=8)
    (images,) = next(iter(task.batches("train"))).inputs
    assert 0 <= seen[0][0] < 0.1 < 0.9 < seen[0][1] <= 1
    torch.testing.assert_close(images, torch.full_like(images, -task.mean[0] / task.spread[0]))
