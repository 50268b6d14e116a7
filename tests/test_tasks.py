"""Splits, tallies, and other people's arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nas.errors import DataError
from nas.evaluation import interval
from nas.tasks import (
    SPLITS,
    Batch,
    Metric,
    RandomAffine,
    RandomCropFlip,
    Tally,
    axis_of_classes,
    digits,
    from_arrays,
    from_npz,
    with_error,
)


@pytest.fixture(scope="module")
def task():
    return digits()


def test_splits_are_apart_and_whole(task):
    parts = [set(task.splits[s].tolist()) for s in SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert [round(len(p) / 1797, 2) for p in parts] == [0.55, 0.15, 0.1, 0.2]


def test_normalised_by_train_alone(task):
    seen = task.prepared(task.splits["train"])
    assert abs(seen.mean()) < 1e-4
    assert abs(seen.std() - 1) < 1e-4


def test_train_is_shuffled_and_augmented_by_seed_and_epoch(task):
    def first(**kw):
        return next(iter(task.batches("train", **kw)))

    a, b, c = first(seed=1, epoch=2), first(seed=1, epoch=2), first(seed=1, epoch=3)
    assert torch.equal(a.inputs[0], b.inputs[0])
    assert not torch.equal(a.targets, c.targets)


def test_other_splits_come_in_order_and_plain(task):
    labels = torch.cat([b.targets for b in task.batches("select", seed=3, epoch=9)])
    assert torch.equal(labels, torch.from_numpy(task.labels[task.splits["select"]]))


def test_parts_make_the_whole(task):
    parts = [b for i in range(2) for b in task.batches("search", part=(i, 2))]
    assert sum(len(b.targets) for b in parts) == len(task.splits["search"])
    counts = sum(torch.bincount(b.targets, minlength=10) for b in parts)
    assert counts.tolist() == np.bincount(task.labels[task.splits["search"]], minlength=10).tolist()


def test_tallies_of_parts_add_up():
    values = torch.rand(100)
    whole, parts = Tally.of(values), Tally.of(values[:30]) + Tally.of(values[30:])
    assert parts.n == 100
    assert parts.mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert parts.std_error == pytest.approx(float(values.std()) / 10, rel=1e-5)
    assert whole.std_error == pytest.approx(parts.std_error)
    assert math.isnan(Tally().mean)


@pytest.mark.parametrize(
    ("answer", "targets", "axis"),
    [
        ((5, 3), (5,), -1),
        ((2, 7, 11), (2, 7), -1),
        ((2, 7, 7), (2, 7), -1),
        ((2, 11, 7, 5), (2, 7, 5), 1),
        ((2, 8, 8, 8), (2, 8, 8), 1),
        ((2, 11, 4, 3), (2, 8, 6), 1),
        ((2, 7, 11), (2,), -1),
        ((1, 3), (4,), -1),
        ((5, 3), (5, 3), None),
        ((5,), (5,), None),
        ((5, 1), (5,), None),
        ((2, 1, 7, 5), (2, 7, 5), None),
        ((5, 3, 8, 8), (5, 1, 8, 8), 1),
        ((2, 7, 11), (2, 7, 1), -1),
        ((10, 100, 5), (10, 4), None),
        ((2, 11, 7, 5), (2,), 1),
        ((2, 11, 7, 5), (2, 11, 7, 4), None),
    ],
    ids=[
        *("classes", "words", "as many words", "pixels", "as many pixels", "smaller maps", "one of places"),
        *("a part of a batch", "labels", "a number each", "one logit", "one logit of pixels"),
        *("masks", "a column", "boxes", "one of pixels", "neither"),
    ],
)
def test_classes_are_on_the_axis_that_targets_lack(answer, targets, axis):
    assert axis_of_classes(answer, torch.zeros(targets, dtype=torch.long)) == axis
    assert axis_of_classes(answer, torch.zeros(targets)) is None


def test_one_value_has_no_error():
    assert Tally.of(torch.tensor([0.5])).std_error is None
    assert interval(Tally.of(torch.tensor([0.5])), Metric("mIoU", "", "maximize")) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_error(value):
    assert Tally.of(torch.tensor([0.2, value, 0.3])).std_error is None


def test_figures_for_people_have_the_digits_that_tell():
    assert with_error(97.604, 0.3412) == "97.60 ± 0.34"
    assert with_error(0.0012534, 0.000021) == "0.001253 ± 2.1e-05"
    assert with_error(1234.5, 12.34) == "1234.50 ± 12.34"
    assert with_error(0.5, None) == "0.5"


def test_accuracy(task):
    batch = Batch((torch.zeros(4),), torch.tensor([0, 1, 2, 3]))
    outputs = torch.eye(10)[[0, 1, 2, 9]]
    tally = task.tallies(outputs, batch)["accuracy"]
    assert tally.mean == 75
    assert tally.std_error == pytest.approx(25)


def test_wilson_interval_of_a_perfect_score_is_not_a_point():
    low, high = interval(Tally.of(torch.full((100,), 100.0)), Metric("accuracy", "%", "maximize"))
    assert 95 < low < 97
    assert high == pytest.approx(100)


def test_affine_keeps_shape_and_range():
    images = torch.rand(5, 3, 8, 8)
    moved = RandomAffine()(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    still = RandomAffine(0, 0, 0)(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, images, rtol=1e-4, atol=1e-4)


def test_crops_and_flips_move_whole_images():
    images = torch.arange(2 * 3 * 36.0).reshape(2, 3, 6, 6).repeat(200, 1, 1, 1)
    moved = RandomCropFlip(pad=2)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[:2], (2,) * 4, mode="reflect")
    possible = [
        [p[:, y : y + 6, x : x + 6].flip(-1) if turned else p[:, y : y + 6, x : x + 6]]
        for p in padded
        for y in range(5)
        for x in range(5)
        for turned in (False, True)
    ]
    possible = torch.stack([p[0] for p in possible]).flatten(1)
    seen = {int((possible == image).all(1).nonzero()[0]) for image in moved.flatten(1)}
    assert len(seen) > 90  # of 100
    still = RandomCropFlip(pad=0, flip=False)(images, torch.Generator().manual_seed(0))
    assert torch.equal(still, images)


def test_channels_are_normalised_each_by_itself():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (60, 3, 4, 4)) + np.array([0, 50, 155])[:, None, None]
    task = from_arrays(images, np.arange(60) % 3)
    assert task.images.dtype == np.uint8
    seen = task.prepared(task.splits["train"])
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert task.preparation.startswith("pixels divided by 255, minus (0.")
    assert torch.equal(next(iter(task.batches("select"))).inputs[0], task.prepared(task.splits["select"]))


def test_fewer_images_are_part_of_all(task):
    less = task.fewer(train=100, search=20)
    assert {s: len(less.splits[s]) for s in SPLITS} == {
        "train": 100,
        "search": 20,
        "select": 180,
        "test": 359,
    }
    assert set(less.splits["train"]) < set(task.splits["train"])
    assert len(np.unique(less.labels[less.splits["train"]])) == 10
    assert less.fingerprint == task.fewer(train=100, search=20).fingerprint != task.fingerprint
    assert abs(float(less.prepared(less.splits["train"]).mean())) < 1e-4
    for wrong in ({"train": 10**6}, {"train": 1}, {"teach": 5}):
        with pytest.raises(
            DataError, match="must be 2 images or more of a split, of which there are train 9"
        ):
            task.fewer(**wrong)


class TestArrays:
    labels = np.arange(40) % 4

    @pytest.mark.parametrize(
        ("shape", "wanted"),
        [((40, 6, 6), (1, 6, 6)), ((40, 6, 6, 3), (3, 6, 6)), ((40, 3, 6, 6), (3, 6, 6))],
    )
    def test_layouts_of_images(self, tmp_path, shape, wanted):
        np.savez(tmp_path / "a.npz", images=np.ones(shape, np.uint8), labels=self.labels)
        task = from_npz(tmp_path / "a.npz")
        assert (task.image_shape, task.classes) == (wanted, 4)

    def test_own_test_set(self, tmp_path):
        rng = np.random.default_rng(0)
        images = rng.random((60, 6, 6))
        np.savez(
            tmp_path / "a.npz",
            images=images[:40],
            labels=self.labels,
            test_images=images[40:],
            test_labels=self.labels[:20],
        )
        task = from_npz(tmp_path / "a.npz")
        assert sorted(task.splits["test"]) == list(range(40, 60))
        assert max(max(task.splits[s]) for s in SPLITS[:3]) < 40

    def test_fingerprint_follows_the_data(self):
        images = np.random.default_rng(0).random((40, 6, 6))
        a, b = from_arrays(images, self.labels), from_arrays(images + (images > 0.9), self.labels)
        assert a.fingerprint == from_arrays(images, self.labels).fingerprint != b.fingerprint

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.ones((4, 6, 6))}, "must hold .'labels'."),
            ({"images": np.ones((4, 6)), "labels": np.zeros(4, int)}, "must be real numbers of shape"),
            ({"images": np.ones((4, 6, 6)), "labels": np.zeros(3, int)}, "one per image"),
            ({"images": np.ones((4, 6, 6)), "labels": np.zeros(4)}, "whole numbers"),
            ({"images": np.full((40, 6, 6), 256), "labels": np.zeros(40, int)}, "between 0 and 255"),
            (
                {
                    "images": np.ones((40, 6, 6), np.uint8),
                    "labels": np.zeros(40, int),
                    "test_images": np.ones((2, 6, 6)),
                    "test_labels": np.zeros(2, int),
                },
                "must be such as `images`, uint8",
            ),
            ({"images": np.full((40, 6, 6), np.nan), "labels": np.zeros(40, int)}, "finite"),
            ({"images": np.ones((4, 6, 6)), "labels": np.zeros(4, int)}, "2 images or more"),
            (
                {
                    "images": np.ones((4, 6, 6)),
                    "labels": np.zeros(4, int),
                    "test_images": np.ones((2, 6, 6)),
                },
                "or neither",
            ),
            (
                {
                    "images": np.ones((40, 6, 6)),
                    "labels": np.arange(40) % 3,
                    "test_images": np.ones((2, 6, 6), np.float32),
                    "test_labels": np.array([1, 7]),
                },
                "`test_labels` must be among `labels`, but 7 is not",
            ),
            ({"images": np.ones((4, 6, 6), complex), "labels": np.zeros(4, int)}, "real numbers of shape"),
            ({"images": np.array([{}] * 4), "labels": np.zeros(4, int)}, "cannot be read"),
            ({"images": np.ones((40, 6, 6)), "labels": np.zeros(40, int)}, "2 classes or more: all 40 are 0"),
            (
                {"images": np.ones((40, 6, 6)), "labels": np.arange(40) * 10**9},
                "from 0: got 39000000000 among",
            ),
        ],
    )
    def test_bad_arrays_are_named(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=message):
            from_npz(tmp_path / "a.npz")

    def test_lists_are_named(self):
        with pytest.raises(DataError, match="`images` must be a NumPy array: got list"):
            from_arrays([[1]], [0])
        with pytest.raises(DataError, match="`labels` must be a NumPy array: got list"):
            from_arrays(np.ones((40, 6, 6)), [0, 1] * 20)

    @pytest.mark.parametrize("kind", [np.uint8, np.float32])
    def test_mean_and_spread_are_those_of_train(self, kind):
        images = np.random.default_rng(0).integers(0, 256, (900, 2, 5, 7)).astype(kind)
        task = from_arrays(images, np.arange(900) % 2)
        train = images[task.splits["train"]].astype(float) / (255 if kind is np.uint8 else 1)
        np.testing.assert_allclose(task.mean, train.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(task.spread, train.std((0, 2, 3)), rtol=1e-12)

    @pytest.mark.parametrize(
        "shape", [(40, 4, 4, 3), (40, 3, 4, 4), (40, 2, 2, 1), (40, 9, 9, 4), (40, 4, 9, 9), (40, 1, 3, 3)]
    )
    def test_channels_are_told_from_sides(self, shape):
        task = from_arrays(np.ones(shape), np.arange(40) % 2)
        sides = {side for side in shape[1:] if shape[1:].count(side) == 2}
        assert task.image_shape == (*({*shape[1:]} - sides), *sides, *sides)

    def test_bad_files_are_named(self, tmp_path):
        with pytest.raises(DataError, match="no file"):
            from_npz(tmp_path / "missing.npz")
        (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
        with pytest.raises(DataError, match=r"must be an \.npz"):
            from_npz(tmp_path / "bad.npz")
