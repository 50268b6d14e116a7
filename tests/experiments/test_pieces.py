"""Pieces of comparisons: predictions are kept without loss, whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.benchmarks.pieces import Piece, epoch_seconds, epochs_in, packed, share_of, unpacked
from nas.pareto import Scale

LABELS = np.array([3, 1, 4, 1], dtype=np.uint8)


def test_predictions_are_packed_without_loss():
    classes = np.random.default_rng(0).integers(0, 10, (3, 40)).astype(np.uint8)
    assert packed(classes).nbytes == classes.nbytes / 2
    assert np.array_equal(unpacked(packed(classes)), classes)


def test_a_piece_comes_back_with_what_is_right(tmp_path):
    classes = {"front": np.array([[3, 1, 4, 0], [3, 0, 0, 0]], np.uint8), "few": np.array([[3, 2]], np.uint8)}
    Piece.write(tmp_path / "new" / "a.npz", {"mmacs": [2.0, 1.0]}, classes)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"]
    piece = Piece.read(tmp_path / "new" / "a.npz", LABELS)
    assert piece.figures == {"mmacs": [2.0, 1.0]}
    assert piece.accuracies("front").tolist() == [75, 25]
    assert piece.accuracies("few").tolist() == [50]
    assert piece.accuracies("front", np.array([0, 0, 0, 2])).tolist() == [0, 0]
    # The box ends 1 % past the nadir: 75 % at 2 MMACs covers 0.76 × 0.51, 25 % at 1 another 0.26 × 0.25.
    assert piece.hypervolume(Scale((-100, 0), (0, 4))) == pytest.approx(0.76 * 0.51 + 0.26 * 0.25)


def test_shares_hold_every_piece_once():
    pieces = list(range(7))
    assert sorted([*share_of(pieces, "0/2"), *share_of(pieces, "1/2")]) == pieces
    assert share_of(pieces, "") == pieces


def test_an_epoch_is_timed_once(tmp_path):
    (tmp_path / "seconds.json").write_text(json.dumps({"a": 3.5}))
    assert epoch_seconds(tmp_path / "seconds.json", {}, None) == {"a": 3.5}
    assert epochs_in(10, 3.5) == 3
    assert epochs_in(1, 3.5) == 1
