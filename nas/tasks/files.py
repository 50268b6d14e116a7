"""Images as people have them on disk: a folder per class, the hub's parquet files, arrays."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from nas.errors import DataError
from nas.tasks.images import SHARES, Augment, ImageClassification, from_arrays, from_npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_COLUMNS, LABEL_COLUMNS = ("img", "image"), ("label", "labels", "fine_label")
TRAIN = ("train", "training")
POOL, TEST = (*TRAIN, "val", "valid", "validation", "dev"), ("test", "testing")
LARGEST_SIDE = 4096  # pixels


class Pictures(NamedTuple):
    """Images (N, side, side, channels) and labels (N,) of one part of the data."""

    images: np.ndarray
    labels: np.ndarray


def from_path(
    path: str | Path,
    *,
    side: int | None = None,
    shares: Mapping[str, float] = SHARES,
    augment: Augment | None = None,
    batch_size: int = 64,
) -> ImageClassification:
    """A task over the images at `path`, which is read as what it looks like:

    - a folder with a folder per class: `cats/1.png`, `dogs/2.jpg`; or with `train/`, `val/`, `test/` of that
      form;
    - a parquet file as on the hub, with a column `img` or `image` (encoded bytes) and `label`; or a folder of
      such;
    - an .npz with arrays, see `from_npz`.

    What is called `test…` is kept for *test*, all else is split by `shares`, and without `test…` all is.
    Photographs are turned as their EXIF data says. Grey images get three equal channels among coloured ones.
    A warning names files and folders that are left out.

    Args:
        side: images are scaled (the shorter side to `side`) and cut to `side` × `side` in the middle. Needed
            where they differ in size.
        shares: see `from_arrays`.

    Raises:
        DataError: nothing that can be read so, damaged images, or images of several sizes; names the file.
    """
    if not isinstance(path, (str, Path)):
        raise DataError(f"`data` must be a path: got {path!r}.")
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"`data` must be a path that exists: no file or folder {path}.")
    if path.suffix == ".npz":
        if side is not None:
            raise DataError(f"`side` must be left out for arrays, which have theirs: got {side} for {path}.")
        return from_npz(path, shares=shares, augment=augment, batch_size=batch_size)
    if side is not None and (type(side) is not int or not 1 <= side <= LARGEST_SIDE):
        raise DataError(f"`side` must be a whole number of pixels, 1 to {LARGEST_SIDE}: got {side!r}.")
    parts, names = _parquet(path, side) if _is_parquet(path) else _folders(path, side)
    if len(parts) == 2:
        parts = _alike(parts)
    test = parts.get("test")
    task = from_arrays(*parts["train"], test=test, shares=shares, augment=augment, batch_size=batch_size)
    return replace(task, names=names, classes=max(task.classes, len(names)))


def _alike(parts: dict[str, Pictures]) -> dict[str, Pictures]:
    """Parts of equal channels, grey ones with three where the other has colours."""
    most = max(part.images.shape[3] for part in parts.values())
    return {
        name: part._replace(images=np.repeat(part.images, most // part.images.shape[3], 3))
        for name, part in parts.items()
    }


# --- a folder per class -------------------------------------------------------------------------


def _folders(root: Path, side: int | None) -> tuple[dict[str, Pictures], tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(
            f"`data` must be a folder with a folder per class, .parquet files, or an .npz: got {root}."
        )
    below = {folder.name.lower(): folder for folder in _visible(root) if folder.is_dir()}
    pool, test = ([below[n] for n in names if n in below] for names in (POOL, TEST))
    if not any(_folders_in(below[n]) for n in TRAIN if n in below):
        if below and all(name in POOL + TEST for name in below):
            raise DataError(
                f"{root} must hold train/ with a folder per class, or folders of classes alone: it has "
                f"{', '.join(sorted(below))}. Rename the one to train on."
            )
        pool, test = [root], []
    elif others := sorted(below.keys() - {*POOL, *TEST}):
        _warn_of(f"folders beside {root / 'train'} that are none of {', '.join(POOL + TEST)}", others)
    names = tuple(sorted({folder.name for part in pool for folder in _folders_in(part)}))
    if len(names) < 2:
        raise DataError(
            f"A folder of images must hold a folder for each of 2 classes or more: {pool[0]} has "
            f"{len(names)}. Put images into folders named after their class."
        )
    if test:
        _require_classes(test[0], names, pool[0])
    parts = {name: _class_folders(of, names, side) for name, of in (("train", pool), ("test", test)) if of}
    if empty := [name for i, name in enumerate(names) if i not in parts["train"].labels]:
        raise DataError(f"{pool[0] / empty[0]} must hold images ({', '.join(SUFFIXES)}), but has none.")
    return parts, names


def _require_classes(test: Path, names: Sequence[str], train: Path) -> None:
    found = {folder.name for folder in _folders_in(test)}
    if unknown := sorted(found - set(names)):
        raise DataError(f"{test} must hold the classes of {train} only, but has {unknown} besides.")
    if not found:
        raise DataError(
            f"{test} must hold a folder per class, as {train} does. Rename it if it is no test set."
        )


def _class_folders(parts: Sequence[Path], names: Sequence[str], side: int | None) -> Pictures:
    found = [
        (file, label)
        for part in parts
        for label, name in enumerate(names)
        for file in sorted((part / name).rglob("*"))
        if file.is_file() and not _hidden(file.relative_to(part))
    ]
    files = [(file, label) for file, label in found if file.suffix.lower() in SUFFIXES]
    if len(files) < len(found):
        others = [file.name for file, _ in found if file.suffix.lower() not in SUFFIXES]
        _warn_of(f"files in folders of classes that are none of {', '.join(SUFFIXES)}", others)
    encoded = ((str(file), file.read_bytes()) for file, _ in files)
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Pictures(_decoded(encoded, len(files), side), labels)


def _warn_of(what: str, names: Sequence[str]) -> None:
    more = ", …" if len(names) > 3 else ""
    warnings.warn(f"Left out: {len(names)} {what}: {', '.join(names[:3])}{more}.", stacklevel=4)


def _folders_in(folder: Path) -> list[Path]:
    return [f for f in _visible(folder) if f.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not _hidden(p.relative_to(folder)))


def _hidden(path: Path) -> bool:
    """What tools leave behind, such as .ipynb_checkpoints/ and __MACOSX/."""
    return any(part.startswith((".", "__")) for part in path.parts)


# --- the hub's parquet --------------------------------------------------------------------------


def _is_parquet(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".parquet"
    files = _parquet_files(path)
    pictures = [f for f in _folders_in(path) if any(_pictures_in(f))]
    if files and pictures:
        raise DataError(
            f"{path} must hold parquet files or folders of images, but has both: "
            f"{files[0].relative_to(path)} and {pictures[0].name}/. Give the path of the one, or move the "
            f"other."
        )
    return bool(files)


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*.parquet") if not _hidden(f.relative_to(folder)))


def _pictures_in(folder: Path) -> Iterator[Path]:
    files = (f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    return (f for f in files if f.is_file() and not _hidden(f.relative_to(folder)))


def _parquet(path: Path, side: int | None) -> tuple[dict[str, Pictures], tuple[str, ...]]:
    files = [path] if path.is_file() else _parquet_files(path)
    test = [f for f in files if f != path and _is_test(f.relative_to(path))]
    pool = [f for f in files if f not in test]
    if not pool:
        raise DataError(f"{path} must hold a parquet file to train on, but has {test[0].name} alone.")
    tables = {"train": [_table(f) for f in pool], "test": [_table(f) for f in test]}
    parts = {name: _rows(of, side) for name, of in tables.items() if of}
    return parts, _class_names(tables["train"][0][1])


def _is_test(file: Path) -> bool:
    """Whether a name or a folder on the way says so: test-00000.parquet, my-test.parquet, test/0.parquet."""
    words = re.split(r"[^a-z]+", str(file.with_suffix("")).lower())
    return any(word in TEST for word in words)


def _table(file: Path) -> tuple[Path, pa.Table]:
    try:
        names = pq.read_schema(file).names
        columns = [next((c for c in known if c in names), None) for known in (IMAGE_COLUMNS, LABEL_COLUMNS)]
        if None in columns:
            raise DataError(
                f"{file} must have a column {' or '.join(IMAGE_COLUMNS)} and a column "
                f"{' or '.join(LABEL_COLUMNS)}: it has {', '.join(names)}."
            )
        return file, pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} must be a parquet file, but cannot be read as one: {error}.") from error


def _rows(tables: Sequence[tuple[Path, pa.Table]], side: int | None) -> Pictures:
    labels = np.concatenate([_numbers(file, table) for file, table in tables])
    encoded = (row for file, table in tables for row in _encoded(file, table.column(0)))
    return Pictures(_decoded(encoded, len(labels), side), labels)


def _numbers(file: Path, table: pa.Table) -> np.ndarray:
    """The labels of a file, int64 (rows,)."""
    name, column = table.column_names[1], table.column(1)
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{file} must hold whole numbers as `{name}`: got {column.type}. Number the classes from 0, as "
            f"the hub's `ClassLabel` does."
        )
    labels: np.ndarray = column.fill_null(-1).to_numpy().astype(np.int64)
    if unlabelled := np.flatnonzero(labels < 0).tolist():
        raise DataError(
            f"{file} must hold a `{name}` of 0 or more in each row, but {len(unlabelled)} of {len(labels)} "
            f"have none or a negative one, row {unlabelled[0]} first. On the hub, such are test sets without "
            f"answers: move the file away, and *test* is split off the rest."
        )
    return labels


def _encoded(file: Path, column: pa.ChunkedArray) -> Iterator[tuple[str, bytes]]:
    """(where it stands, bytes) of each image: the hub's struct of bytes and path, or the bytes alone."""
    for i, value in enumerate(column):
        data = value.as_py()
        data = data.get("bytes") if isinstance(data, Mapping) else data
        if not isinstance(data, bytes):
            raise DataError(f"{file}, row {i}, must hold the bytes of an image: got {type(data).__name__}.")
        yield f"{file}, row {i},", data


def _class_names(table: pa.Table) -> tuple[str, ...]:
    """As the hub's `datasets` notes them in the schema; none where it does not."""
    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[table.column_names[1]].get("names", ())))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


# --- pixels -------------------------------------------------------------------------------------


def _decoded(encoded: Iterable[tuple[str, bytes]], n: int, side: int | None) -> np.ndarray:
    """Images uint8 (n, H, W, channels), 1 channel where all of them are grey, else 3."""
    images: np.ndarray | None = None
    for i, (where, data) in enumerate(encoded):
        array = _pixels(where, data, side)
        if images is None:
            images = np.empty((n, *array.shape), dtype=np.uint8)
        if array.shape[:2] != images.shape[1:3]:
            sizes = [f"{width}×{height}" for height, width in (images.shape[1:3], array.shape[:2])]
            raise DataError(
                f"Images must be of one size: got {sizes[0]}, and {where} is {sizes[1]}. Give `side` (--set "
                f"side=32), to which they are scaled and cut."
            )
        if array.shape[2] > images.shape[3]:
            images = np.repeat(images, array.shape[2], 3)
        images[i] = array  # grey ones get three equal channels among coloured ones
    if images is None:
        raise DataError("A set of images must not be empty, but it is.")
    return images


def _pixels(where: str, data: bytes, side: int | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode.startswith(("I", "F")):
                raise DataError(
                    f"{where} must have 8 bits per channel: got {opened.mode}, which would be cut off. Give "
                    f"such images as arrays of floats, see `from_npz`."
                )
            upright = ImageOps.exif_transpose(opened)
            image: Any = upright.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where} must be an image, but cannot be decoded ({type(error).__name__})."
        ) from error
    if side is not None and image.size != (side, side):
        image = _cut(image, side)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _cut(image: Any, side: int) -> Any:
    """The square in the middle, scaled to `side`."""
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
