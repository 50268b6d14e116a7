"""Images by path: what is read, as what, and what is said of what cannot be."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nas.errors import DataError
from nas.tasks import SPLITS, from_path

CLASSES = ("cat", "dog", "emu")


def picture(seed: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folders(root: Path, each: int = 8, classes=CLASSES, **kw) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(100 * c + i, **kw).save(root / name / f"{i}.png")
    return root


def parquet(path: Path, n: int = 24, image: str = "img", label: str = "label", names=CLASSES) -> Path:
    rows = [{"bytes": encoded(picture(i)), "path": None} for i in range(n)]
    table = pa.table({image: rows, label: pa.array(np.arange(n) % 3)})
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


class TestFolders:
    def test_a_folder_per_class(self, tmp_path):
        task = from_path(folders(tmp_path / "pictures"))
        assert (task.image_shape, task.classes, task.names) == ((3, 6, 6), 3, CLASSES)
        assert sum(len(task.splits[s]) for s in SPLITS) == 24
        expected = np.asarray(picture(102)).transpose(2, 0, 1)
        at = int(np.flatnonzero((task.images == expected).all((1, 2, 3)))[0])
        assert task.labels[at] == 1

    def test_train_and_test(self, tmp_path):
        folders(tmp_path / "train")
        folders(tmp_path / "test", each=3, classes=CLASSES[:2])
        task = from_path(tmp_path)
        assert task.classes == 3
        assert len(task.splits["test"]) == 6
        assert sorted(task.labels[task.splits["test"]].tolist()) == [0, 0, 0, 1, 1, 1]

    @pytest.mark.parametrize("name", ["val", "dev"])
    def test_validation_is_split_with_the_rest(self, tmp_path, name):
        folders(tmp_path / "train")
        folders(tmp_path / name, each=2)
        task = from_path(tmp_path)
        assert len(task.images) == 30
        assert len(task.splits["test"]) == 6

    def test_a_class_may_be_called_train(self, tmp_path):
        task = from_path(folders(tmp_path, classes=("bus", "train")))
        assert task.names == ("bus", "train")

    def test_what_tools_leave_behind_is_passed_over(self, tmp_path):
        folders(tmp_path)
        for folder in (tmp_path / "cat" / ".ipynb_checkpoints", tmp_path / "__MACOSX"):
            folder.mkdir()
            picture(0).save(folder / "0.png")
        (tmp_path / "dog" / "._0.png").write_bytes(b"no image")
        (tmp_path / "dog" / "folder.png").mkdir()
        task = from_path(tmp_path)
        assert (len(task.images), task.names) == (24, CLASSES)

    def test_parts_without_train_are_no_classes(self, tmp_path):
        folders(tmp_path / "val")
        folders(tmp_path / "test")
        with pytest.raises(DataError, match=r"it has test, val\. Rename the one to train on"):
            from_path(tmp_path)

    def test_deeper_pixels_are_refused(self, tmp_path):
        folders(tmp_path)
        Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(tmp_path / "cat" / "deep.png")
        with pytest.raises(DataError, match=r"deep\.png must have 8 bits per channel: got I"):
            from_path(tmp_path)

    def test_grey_pictures_have_one_channel_unless_some_have_colour(self, tmp_path):
        folders(tmp_path / "a", mode="L")
        grey = from_path(tmp_path / "a")
        assert grey.image_shape == (1, 6, 6)
        assert (grey.images == np.asarray(picture(102, mode="L"))).all((1, 2, 3)).sum() == 1
        picture(0).save(tmp_path / "a" / "cat" / "9.png")
        task = from_path(tmp_path / "a")
        assert task.image_shape == (3, 6, 6)
        assert (task.images == task.images[:, :1]).all((1, 2, 3)).sum() == 24

    def test_photographs_are_turned_as_they_say(self, tmp_path):
        root = folders(tmp_path)
        upright = picture(0, size=(6, 9))
        said = upright.getexif()
        said[0x0112] = 6  # to be turned by a quarter
        upright.save(root / "cat" / "0.png", exif=said)
        for file in {*root.rglob("*.png")} - {root / "cat" / "0.png"}:
            picture(1, size=(9, 6)).save(file)
        task = from_path(root)
        turned = np.rot90(np.asarray(upright), -1).transpose(2, 0, 1)
        assert (task.images == turned).all((1, 2, 3)).sum() == 1

    def test_what_is_left_out_is_told(self, tmp_path):
        root = folders(tmp_path / "train").parent
        for i in range(5):
            (root / "train" / "cat" / f"{i}.heic").write_bytes(b"photo")
        with pytest.warns(UserWarning, match=r"Left out: 5 files .*none of \.png.*: 0\.heic, 1.*, 2.*, …"):
            from_path(root)
        for file in root.rglob("*.heic"):
            file.unlink()
        folders(root / "more")
        with pytest.warns(UserWarning, match=r"1 folders beside .*train that are none of train.*: more\."):
            from_path(root)

    def test_hidden_parquet_files_are_passed_over(self, tmp_path):
        root = folders(tmp_path / "pictures")
        (root / ".cache").mkdir()
        parquet(root / ".cache" / "x.parquet", names=("a", "b", "c"))
        assert from_path(root).names == CLASSES

    def test_pictures_beside_parquet_files_are_ambiguous(self, tmp_path):
        root = folders(tmp_path / "pictures")
        pq.write_table(pa.table({"file": ["cat/0.png"]}), root / "labels.parquet")
        with pytest.raises(DataError, match=r"has both: labels\.parquet and cat/\. Give the path of the one"):
            from_path(root)

    def test_side_cuts_the_middle(self, tmp_path):
        folders(tmp_path / "a")
        wide = np.zeros((6, 12, 3), np.uint8)
        wide[:, 3:9] = np.asarray(picture(7))
        Image.fromarray(wide).save(tmp_path / "a" / "cat" / "wide.png")
        task = from_path(tmp_path / "a", side=6)
        assert (task.images == np.asarray(picture(7)).transpose(2, 0, 1)).all((1, 2, 3)).sum() == 2
        assert from_path(tmp_path / "a", side=3).image_shape == (3, 3, 3)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda p: (p / "cat" / "0.png").write_bytes(b"no image"), r"cat/0\.png must be an image"),
            (
                lambda p: picture(0, (5, 7)).save(p / "dog" / "z.png"),
                r"got 6×6, and .*z\.png is 5×7\. Give `s",
            ),
            (lambda p: (p / "fox").mkdir(), "fox must hold images"),
        ],
    )
    def test_bad_folders_are_named(self, tmp_path, spoil, message):
        spoil(folders(tmp_path / "a"))
        with pytest.raises(DataError, match=message):
            from_path(tmp_path / "a")

    def test_an_unknown_class_in_test_is_named(self, tmp_path):
        folders(tmp_path / "train")
        folders(tmp_path / "test", classes=(*CLASSES, "yak"))
        with pytest.raises(DataError, match=r"but has \['yak'\] besides"):
            from_path(tmp_path)

    def test_a_test_without_classes_is_named(self, tmp_path):
        folders(tmp_path / "train")
        (tmp_path / "test").mkdir()
        picture(0).save(tmp_path / "test" / "0.png")
        with pytest.raises(DataError, match="test must hold a folder per class"):
            from_path(tmp_path)


class TestParquet:
    @pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels")])
    def test_a_file_as_on_the_hub(self, tmp_path, image, label):
        task = from_path(parquet(tmp_path / "data.parquet", image=image, label=label))
        assert (task.image_shape, task.names) == ((3, 6, 6), CLASSES)
        order = np.array([np.asarray(picture(i)).transpose(2, 0, 1) for i in range(24)])
        assert np.array_equal(task.images, order)
        assert np.array_equal(task.labels, np.arange(24) % 3)

    def test_parts_by_name(self, tmp_path):
        (tmp_path / "data").mkdir()
        parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
        parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
        parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", n=7)
        parquet(tmp_path / "data" / "test-00000-of-00001.parquet", n=5)
        task = from_path(tmp_path)
        assert len(task.images) == 60
        assert task.splits["test"].tolist() == list(range(55, 60))

    def test_a_single_file_is_split_whatever_its_name(self, tmp_path):
        assert len(from_path(parquet(tmp_path / "test.parquet")).images) == 24

    @pytest.mark.parametrize("name", ["test/0000.parquet", "cifar10-test.parquet", "data/test.parquet"])
    def test_what_is_called_test_is_kept_for_it(self, tmp_path, name):
        for path, n in ((name.replace("test", "train"), 20), (name, 5)):
            (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
            parquet(tmp_path / path, n=n)
        task = from_path(tmp_path)
        assert task.splits["test"].tolist() == list(range(20, 25))

    def test_bad_files_are_named(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet")
        with pytest.raises(DataError, match=r"a\.parquet must be a parquet file"):
            from_path(tmp_path / "a.parquet")
        pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), tmp_path / "b.parquet")
        with pytest.raises(DataError, match=r"column img or image .* it has picture, label"):
            from_path(tmp_path / "b.parquet")
        pq.write_table(pa.table({"img": ["x"], "label": [1]}), tmp_path / "c.parquet")
        with pytest.raises(DataError, match=r"c\.parquet, row 0, must hold the bytes of an image: got str"):
            from_path(tmp_path / "c.parquet")
        pq.write_table(pa.table({"img": [b"x"], "label": ["cat"]}), tmp_path / "d.parquet")
        with pytest.raises(DataError, match=r"d\.parquet .*whole numbers as `label`: got string\. Number"):
            from_path(tmp_path / "d.parquet")

    @pytest.mark.parametrize("label", [-1, None])
    def test_a_test_set_without_answers_is_named(self, tmp_path, label):
        parquet(tmp_path / "train.parquet")
        images = [encoded(picture(i)) for i in range(4)]
        table = pa.table({"img": images, "label": pa.array([0, 1, label, label])})
        pq.write_table(table, tmp_path / "test.parquet")
        with pytest.raises(DataError, match=r"test\.parquet .*2 of 4 have none .*row 2 first.*move the file"):
            from_path(tmp_path)

    def test_a_grey_test_beside_a_coloured_train(self, tmp_path):
        parquet(tmp_path / "train.parquet")
        images = [encoded(picture(i, mode="L")) for i in range(6)]
        pq.write_table(pa.table({"img": images, "label": [0, 1, 2] * 2}), tmp_path / "test.parquet")
        task = from_path(tmp_path)
        grey = task.images[task.splits["test"]]
        assert (grey == grey[:, :1]).all()
        assert np.array_equal(grey[0, 0], np.asarray(picture(0, mode="L")))


def test_arrays(tmp_path):
    images, labels = np.ones((40, 6, 6, 3), np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    assert from_path(tmp_path / "a.npz").image_shape == (3, 6, 6)
    with pytest.raises(DataError, match="`side` must be left out for arrays"):
        from_path(tmp_path / "a.npz", side=3)


def test_what_is_not_there_or_nothing_of_the_kind_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file or folder .*nowhere"):
        from_path(tmp_path / "nowhere")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"got .*a\.csv"):
        from_path(tmp_path / "a.csv")
    with pytest.raises(DataError, match="for each of 2 classes or more"):
        from_path(tmp_path)
    with pytest.raises(DataError, match="`side` must be a whole number of pixels, 1 to 4096: got 0"):
        from_path(folders(tmp_path / "a"), side=0)
    with pytest.raises(DataError, match="1 to 4096: got 10000000"):
        from_path(tmp_path / "a", side=10_000_000)


def test_shares(tmp_path):
    shares = {"train": 0.8, "search": 0.1, "select": 0.1, "test": 0.2}
    folders(tmp_path / "train", each=20)
    folders(tmp_path / "test", each=3)
    task = from_path(tmp_path, shares=shares)
    assert {s: len(task.splits[s]) for s in SPLITS} == {"train": 48, "search": 6, "select": 6, "test": 9}
    with pytest.raises(DataError, match="`shares` must give each of train, search, select, test"):
        from_path(tmp_path, shares={"train": 1.0})
