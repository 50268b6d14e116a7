"""Image classification on arrays in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import DataError
from nas.tasks.base import SPLITS, Batch, Metric, Split, Tally

Augment = Callable[[Tensor, torch.Generator], Tensor]
SHARES = {"train": 0.55, "search": 0.15, "select": 0.10, "test": 0.20}
SPLIT_SEED = 20_240_613  # the splits stay the same whatever the seed of a run


@dataclass(frozen=True, eq=False)
class ImageClassification:
    """Images and labels, split in four.

    Attributes:
        images: (N, channels, height, width), pixels as uint8, 0 … 255, or as float32.
        labels: int64 (N,), 0 … classes − 1.
        splits: indices per split.
        augment: applied to batches of *train*, of which uint8 pixels are divided by 255, before they are
            normalised.
        mean, spread: per channel, of what a module gets: (pixels − mean) / spread, where uint8 pixels are
            divided by 255 first.
        pixels: in words, what the values of `images` are.
        names: of the classes, where the data tell them.
    """

    images: np.ndarray
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    classes: int
    augment: Augment | None = None
    batch_size: int = 64
    eval_batch_size: int = 512
    mean: tuple[float, ...] = (0.0,)
    spread: tuple[float, ...] = (1.0,)
    pixels: str = "as in the arrays"
    names: tuple[str, ...] = ()

    metric = Metric("accuracy", "%", "maximize")

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"`task.{name}` must be 1 or more: got {getattr(self, name)}.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def preparation(self) -> str:
        mean, spread = (", ".join(f"{v:.6f}" for v in values) for values in (self.mean, self.spread))
        if len(self.mean) > 1:
            mean, spread = f"({mean}) by channel", f"({spread})"
        return f"pixels {self.pixels}, minus {mean}, divided by {spread}"

    @property
    def fingerprint(self) -> str:
        parts = (self.images, self.labels, *(self.splits[s] for s in SPLITS))
        hashes = hashlib.sha256()
        for part in parts:
            hashes.update(np.ascontiguousarray(part).tobytes())
        return hashes.hexdigest()[:12]

    def batches(
        self, split: Split, *, seed: int = 0, epoch: int = 0, part: tuple[int, int] = (0, 1), first: int = 0
    ) -> Iterator[Batch]:
        share, shares = part
        indices = self.splits[split]
        training = split == "train"
        if training:
            indices = np.random.default_rng((seed, epoch)).permutation(indices)
        size = self._size(split)
        for start in range(first * size, len(indices) - self._left_out(split), size):
            chosen = indices[start : start + size][share::shares]
            images = torch.from_numpy(_floats(self.images[chosen]))
            if training and self.augment:
                rng = np.random.default_rng((seed, epoch, start, share, shares))
                images = self.augment(images, torch.Generator().manual_seed(int(rng.integers(1 << 62))))
            yield Batch((self._normalised(images),), torch.from_numpy(self.labels[chosen]))

    def batch_count(self, split: Split) -> int:
        return math.ceil((len(self.splits[split]) - self._left_out(split)) / self._size(split))

    def _left_out(self, split: Split) -> int:
        """1 where an image of *train*, another one in each epoch, would be a batch by itself: batch norms
        have no variance over one."""
        size, images = self._size(split), len(self.splits[split])
        return int(split == "train" and size > 1 and images > 1 and images % size == 1)

    def _size(self, split: Split) -> int:
        return self.batch_size if split == "train" else self.eval_batch_size

    def prepared(self, indices: np.ndarray) -> Tensor:
        """Images as a module gets them, float32 (n, channels, height, width)."""
        return self._normalised(torch.from_numpy(_floats(self.images[indices])))

    def _normalised(self, images: Tensor) -> Tensor:
        mean, spread = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.spread))
        return (images - mean) / spread

    def fewer(self, **images: int) -> ImageClassification:
        """The task with so many images of a split in the place of all, always the same ones.

        Normalised by what is left of *train*.

        Example:
            >>> task = from_path("cifar10").fewer(train=10_000)

        Raises:
            DataError: an unknown split, or one that holds fewer images than are asked for.
        """
        splits = dict(self.splits)
        for name, n in images.items():
            if name not in splits or not 2 <= n <= len(splits[name]):
                sizes = ", ".join(f"{split} {len(indices)}" for split, indices in self.splits.items())
                raise DataError(
                    f"`{name}={n}` must be 2 images or more of a split, of which there are {sizes}."
                )
            order = np.random.default_rng(SPLIT_SEED).permutation(splits[name])
            splits[name] = np.sort(order[:n])
        mean, spread = _statistics(self.images, splits["train"])
        return replace(self, splits=splits, mean=mean, spread=spread)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch.targets)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, Tally]:
        soft = batch.targets.is_floating_point()  # probabilities of classes
        labels = batch.targets.argmax(-1) if soft else batch.targets
        return {"accuracy": Tally.of(100.0 * (outputs.argmax(-1) == labels))}


def digits(batch_size: int = 64) -> ImageClassification:
    """The 1,797 digits of 8 × 8 pixels that scikit-learn ships (Alpaydin & Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    task = from_arrays(
        data.images.astype(np.float32) / 16, data.target, augment=RandomAffine(), batch_size=batch_size
    )
    return replace(task, pixels="divided by 16")


def from_npz(
    path: str | Path,
    *,
    shares: Mapping[str, float] = SHARES,
    augment: Augment | None = None,
    batch_size: int = 64,
) -> ImageClassification:
    """One's own arrays: `images` and `labels`, and `test_images`, `test_labels` where a test set exists.

    Images are (N, H, W), (N, H, W, channels) or (N, channels, H, W) with 1 to 4 channels, as integers
    from 0 to 255 or floats.

    Raises:
        DataError: a file that is missing or is no .npz of such arrays; names what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"`data` must be an .npz file with arrays `images` and `labels`: no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy's, zipfile's and zlib's own; some advise to allow pickles
        raise DataError(f"{path} must be an .npz of plain arrays, but cannot be read as one.") from error
    if missing := {"images", "labels"} - set(arrays):
        raise DataError(f"{path} must hold {sorted(missing)}, but has {sorted(arrays)}.")
    test = None
    if "test_images" in arrays or "test_labels" in arrays:
        if not {"test_images", "test_labels"} <= set(arrays):
            raise DataError(f"{path} must hold both `test_images` and `test_labels`, or neither.")
        test = arrays["test_images"], arrays["test_labels"]
    return from_arrays(
        arrays["images"],
        arrays["labels"],
        test=test,
        shares=shares,
        augment=augment,
        batch_size=batch_size,
    )


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    shares: Mapping[str, float] = SHARES,
    augment: Augment | None = None,
    batch_size: int = 64,
) -> ImageClassification:
    """A task over arrays; see `from_npz`.

    Args:
        shares: of the images in each split. With a `test` set of its own, its share goes to the others.
    """
    _require_shares(shares)
    images, labels = _images("images", images), _labels("labels", labels, len(images))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    shares = {split: shares[split] for split in SPLITS}
    splits: dict[str, np.ndarray] = {}
    if test is not None:
        test_images = _images("test_images", test[0])
        if test_images.shape[1:] != images.shape[1:] or test_images.dtype != images.dtype:
            raise DataError(
                f"`test_images` must be such as `images`, {images.dtype} {images.shape[1:]}: got "
                f"{test_images.dtype} {test_images.shape[1:]}."
            )
        splits["test"] = len(images) + np.arange(len(test_images))
        images = np.concatenate([images, test_images])
        test_labels = _labels("test_labels", test[1], len(test_images), numbered=False)
        if untrained := sorted({*test_labels.tolist()} - {*labels.tolist()}):
            raise DataError(
                f"`test_labels` must be among `labels`, but {untrained[0]} is not: there would be nothing to "
                f"learn that class from."
            )
        labels = np.concatenate([labels, test_labels])
        shares.pop("test")
    ends = np.cumsum([share / sum(shares.values()) for share in shares.values()])
    parts = np.split(order, np.round(ends[:-1] * len(order)).astype(int))
    splits |= {name: np.sort(part) for name, part in zip(shares, parts, strict=True)}
    if small := [name for name in SPLITS if len(splits[name]) < 2]:
        raise DataError(f"Every split must hold 2 images or more: {small} would not, of {len(order)} images.")
    if labels.min() == labels.max():
        raise DataError(f"`labels` must hold 2 classes or more: all {len(labels)} are {labels[0]}.")
    mean, spread = _statistics(images, splits["train"])
    pixels = "divided by 255" if images.dtype == np.uint8 else "as in the arrays"
    return ImageClassification(
        images,
        labels,
        splits,
        int(labels.max()) + 1,
        augment,
        batch_size,
        mean=mean,
        spread=spread,
        pixels=pixels,
    )


@dataclass(frozen=True)
class RandomAffine:
    """A random rotation, shift and scaling of each image, bilinear; beyond the edge the border repeats."""

    degrees: float = 12.0
    shift: float = 0.12
    scale: float = 0.12

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) to the same shape."""
        n = len(images)
        angle, grow, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1).unbind()
        angle, grow = angle * self.degrees * torch.pi / 180, 1 + grow * self.scale
        cos, sin = torch.cos(angle) * grow, torch.sin(angle) * grow
        rows = [cos, -sin, dx * 2 * self.shift, sin, cos, dy * 2 * self.shift]
        grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class RandomCropFlip:
    """Each image moved by up to `pad` pixels, the border mirrored, and turned left to right every second time
    (He et al., 2016, §4.2, with a mirrored border)."""

    pad: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) to the same shape."""
        B, _, H, W = images.shape
        padded = F.pad(images, (self.pad,) * 4, mode="reflect")
        dy, dx = torch.randint(0, 2 * self.pad + 1, (2, B, 1), generator=generator)
        rows, columns = dy + torch.arange(H), dx + torch.arange(W)
        if self.flip:
            turned = torch.rand(B, 1, generator=generator) < 0.5
            columns = torch.where(turned, columns.flip(1), columns)
        return padded[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(
            0, 3, 1, 2
        )


def _statistics(images: np.ndarray, indices: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of each channel, a few images at a time."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    parts = np.array_split(indices, math.ceil(len(indices) / 256))

    def mean_of(what: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = [what(images[part].astype(np.float64) / scale).sum((0, 2, 3)) for part in parts]
        return np.asarray(sum(sums) / (len(indices) * math.prod(images.shape[2:])))

    mean = mean_of(lambda pixels: pixels)
    spread = np.sqrt(mean_of(lambda pixels: (pixels - mean[:, None, None]) ** 2))
    return tuple(mean.tolist()), tuple(np.maximum(spread, 1e-6).tolist())


def _floats(images: np.ndarray) -> np.ndarray:
    return images / np.float32(255) if images.dtype == np.uint8 else images


def _require_shares(shares: Mapping[str, float]) -> None:
    given = dict(shares) if isinstance(shares, Mapping) else {}
    numbers = all(isinstance(share, (int, float)) and 0 < share < 1 for share in given.values())
    if set(given) != set(SPLITS) or not numbers:
        raise DataError(
            f"`shares` must give each of {', '.join(SPLITS)} a share between 0 and 1: got {shares!r}."
        )


def _images(name: str, images: np.ndarray) -> np.ndarray:
    """To (N, C, H, W) of uint8 or float32."""
    images = _array(name, images)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and _channels_are_last(images.shape):
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1] > 4 or not _is_real(images.dtype):
        raise DataError(
            f"`{name}` must be real numbers of shape (N, H, W), (N, H, W, channels) or (N, channels, H, W): "
            f"got {images.dtype} {images.shape}."
        )
    if np.issubdtype(images.dtype, np.integer):
        if images.size and not 0 <= int(images.min()) <= int(images.max()) <= 255:
            raise DataError(
                f"`{name}` must lie between 0 and 255 where they are whole numbers: got {images.min()} to "
                f"{images.max()}. Divide them by their range, to floats."
            )
        return np.ascontiguousarray(images, dtype=np.uint8)
    images = np.ascontiguousarray(images, dtype=np.float32)
    if not np.isfinite(images).all():
        raise DataError(f"`{name}` must be finite, but holds NaN or infinity.")
    return images


def _array(name: str, values: np.ndarray) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise DataError(f"`{name}` must be a NumPy array: got {type(values).__name__}. Use np.asarray.")
    return values


def _is_real(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)


def _channels_are_last(shape: tuple[int, ...]) -> bool:
    """Of (N, a, b, c). Where sides are as small as channels are few, those of one length are the sides."""
    _, a, b, c = shape
    return c <= 4 and (a > 4 or a == b != c)


def _labels(name: str, labels: np.ndarray, n: int, *, numbered: bool = True) -> np.ndarray:
    """As int64; where they are `numbered`, there is hardly a class without an image."""
    labels = _array(name, labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise DataError(
            f"`{name}` must be whole numbers from 0, one per image: got {labels.dtype} {labels.shape} "
            f"for {n} images."
        )
    if numbered and n and (highest := int(labels.max())) >= n:
        raise DataError(
            f"`{name}` must number the classes from 0: got {highest} among {n} images. "
            f"np.unique(labels, return_inverse=True)[1] does it."
        )
    return labels.astype(np.int64)
