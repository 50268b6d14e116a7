"""Checkpoints of published models, as libraries write them, into points: small ones, by the same names."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from published import small
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.benchmarks.published_points import RELATIVE, answer, images, relative, with_random_weights
from nas.errors import DataError, RunError
from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename, translated
from search_spaces.published import POINTS, from_pretrained

CLASSES = small.CLASSES
IMAGES = {"swin_tiny": (56, 112), "mit_b0": (64, 96)}
SMALL: dict[str, tuple[Callable, Callable[[], nn.Module]]] = {
    "swin_tiny": (small.swin, small.their_swin),
    "mit_b0": (small.mit, small.their_mit),
}


@pytest.fixture(autouse=True)
def small_points(monkeypatch):
    for name, (point, _) in SMALL.items():
        monkeypatch.setitem(POINTS, name, point)


@pytest.fixture(scope="module", params=SMALL)
def model(request) -> tuple[str, nn.Module]:
    """The name of a model and the library's small one, with weights under which every part matters."""
    prepare()
    torch.manual_seed(0)
    return request.param, with_random_weights(SMALL[request.param][1](), small.SIDE)


@pytest.fixture(scope="module")
def swin() -> dict[str, Tensor]:
    prepare()
    torch.manual_seed(0)
    return {n: t.clone() for n, t in small.their_swin().state_dict().items()}


@pytest.fixture
def saved(tmp_path) -> Callable[[dict[str, Tensor]], Path]:
    def save(state: dict[str, Tensor]) -> Path:
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return save


def assert_same_answers(name: str, path: str | Path, theirs: nn.Module) -> None:
    ours = from_pretrained(name, path)
    assert not ours.training
    x = torch.randn(2, 3, *IMAGES[name], generator=torch.Generator().manual_seed(1))
    expected = answer(theirs, x)
    assert answer(ours, x).shape == (2, CLASSES)
    assert relative(answer(ours, x), expected) < 1e-5


def test_weights_under_the_names_of_today(model, saved):
    name, theirs = model
    assert_same_answers(name, saved(theirs.state_dict()), theirs)


@pytest.mark.filterwarnings("ignore")
def test_weights_under_the_names_of_the_hub(model, tmp_path):
    """`save_pretrained` writes the names that checkpoints on the hub have, and not those of the module."""
    name, theirs = model
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = load_file(file)
    assert set(old) != set(theirs.state_dict())
    assert len(old) == len(theirs.state_dict())
    assert_same_answers(name, str(file), theirs)


def test_indices_that_old_checkpoints_hold_are_left_out(swin, saved):
    block = "swin.encoder.layers.0.blocks.1.attention.self."
    index = {block + "relative_position_index": torch.zeros(49, 49, dtype=torch.long)}
    with_index, without = (from_pretrained("swin_tiny", saved(s)) for s in (swin | index, swin))
    for name, tensor in without.state_dict().items():
        assert torch.equal(tensor, with_index.state_dict()[name]), name


def test_the_classifier_says_how_many_classes_there_are(swin, saved):
    images = torch.zeros(1, 3, small.SIDE, small.SIDE)
    more = {"classifier.weight": torch.randn(7, 16), "classifier.bias": torch.randn(7)}
    assert answer(from_pretrained("swin_tiny", saved(swin | more)), images).shape == (1, 7)


def test_another_number_of_classes_gets_a_new_classifier(swin, saved):
    path = saved(swin)
    old, new = (from_pretrained("swin_tiny", path, classes).state_dict() for classes in (CLASSES, 9))
    assert new["head.linear.weight"].shape == (9, 16)
    assert torch.equal(old["head.linear.weight"], swin["classifier.weight"])
    assert all(torch.equal(new[n], old[n]) for n in old if not n.startswith("head.linear."))
    with pytest.raises(DataError, match="`classes` must be a whole number, 1 or more: got 0"):
        from_pretrained("swin_tiny", path, 0)


def test_a_backbone_without_classifier_gets_one(swin, saved):
    backbone = without(swin, "classifier.weight", "classifier.bias")
    model = from_pretrained("swin_tiny", saved(backbone), 5).state_dict()
    whole = from_pretrained("swin_tiny", saved(swin)).state_dict()
    assert model["head.linear.weight"].shape == (5, 16)
    assert all(torch.equal(model[n], whole[n]) for n in whole if not n.startswith("head.linear."))


# --- weights that do not fit --------------------------------------------------------------------


def without(state: dict[str, Tensor], *ends: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if not n.endswith(ends)}


QUERY = "swin.encoder.layers.0.blocks.1.attention.q_proj.weight"
UP = "swin.encoder.layers.0.blocks.0.mlp.fc1.weight"
TABLE = "swin.encoder.layers.1.blocks.0.attention.relative_position_bias.relative_position_bias_table"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, QUERY), r"missing \['stages\.0\.blocks\.1\.mixer\.q\.weight'\]"),
        (lambda s: without(s, "classifier.bias"), r"missing \['head\.linear\.bias'\]"),
        (
            lambda s: without(s, "classifier.weight", "classifier.bias"),
            r"must hold a classifier, but has none.*Give `classes`",
        ),
        (lambda s: s | {"lm_head.weight": torch.zeros(2)}, r"tensors of its published model only.*`lm_head"),
        (
            lambda s: s | {QUERY.replace("blocks.1", "blocks.7"): s[QUERY].clone()},
            r"superfluous \['stages\.0\.blocks\.7\.mixer\.q\.weight'\]",
        ),
        (
            lambda s: s | {QUERY: torch.zeros(16, 8)},
            r"another shape \['stages\.0\.blocks\.1\.mixer\.q\.weight \(16, 8\) for \(8, 8\)'\]",
        ),
        (  # as many numbers, in another order
            lambda s: s | {UP: s[UP].T},
            r"another shape \['stages\.0\.blocks\.0\.ffn\.up\.weight \(8, 32\) for \(32, 8\)'\]",
        ),
        (  # of windows of 12 × 12
            lambda s: s | {TABLE: torch.zeros(23 * 23, 2)},
            rf"must have its published shape: `{TABLE}` has \(529, 2\)",
        ),
        (lambda s: s | {"classifier.weight": torch.zeros(9, 16)}, r"head\.linear\.weight \(9, 16\) for"),
        (lambda s: {}, "must hold tensors: .* has none"),
        (lambda s: s | {"classifier.bias": torch.tensor(1.0)}, r"a bias per class: got one of shape \(\)"),
        (lambda s: s | {"classifier.bias": torch.zeros(0)}, r"a bias per class: got one of shape \(0,\)"),
        (lambda s: {"classifier.bias": torch.zeros(3)}, "missing"),
        (lambda s: s | {UP: torch.full((32, 8), torch.nan)}, r"finite floats: `.*up\.weight` has NaN"),
        (lambda s: s | {UP: torch.zeros(32, 8, dtype=torch.int8)}, "finite floats: .* has torch.int8"),
    ],
    ids=[
        "missing",
        "half a classifier",
        "no classifier",
        "unknown",
        "one block too many",
        "too many rows",
        "transposed",
        "another window",
        "another classifier",
        "nothing",
        "a number for a classifier",
        "no classes",
        "next to nothing",
        "NaN",
        "whole numbers",
    ],
)
def test_weights_that_do_not_fit_are_named(change, message, swin, saved):
    with pytest.raises(DataError, match=message):
        from_pretrained("swin_tiny", saved(change(swin)))


def test_what_several_tensors_make_together_must_be_there():
    """Two convolutions become one in CSWin; half of them is not enough."""
    from search_spaces.pretrained import cswin_tiny

    half = {"stage1.0.attns.0.get_v.weight": torch.zeros(32, 1, 3, 3)}
    with pytest.raises(DataError, match=r"must hold all tensors.*mixer\.position\.lepe\.weight"):
        translated(half, cswin_tiny)


class Fused:
    """Names of a model with fused queries, keys and values."""

    RENAMES = [Rename(r"qkv", ("q", "k", "v")), Rename(r"dropped")]


def test_fused_weights_come_apart_in_order():
    fused = torch.arange(12).reshape(6, 2)
    ours = translated({"qkv": fused, "dropped": fused}, Fused)
    assert {n: t.tolist() for n, t in ours.items()} == {
        "q": [[0, 1], [2, 3]],
        "k": [[4, 5], [6, 7]],
        "v": [[8, 9], [10, 11]],
    }


# --- files that are none ------------------------------------------------------------------------


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps({"classifier.bias": bomb}))


def write_archive(path: Path, bomb: Bomb) -> None:
    """As `torch.save` writes it, which is a zip file with a pickle in it."""
    torch.save({"classifier.bias": bomb}, path)
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("write", [write_pickle, write_archive], ids=["pickle", "archive"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.safetensors"])
def test_pickles_are_not_read(name, write, tmp_path):
    """Nothing that a user gives is unpickled; a pickle that is called otherwise is no safetensors file."""
    trace = tmp_path / "trace"
    write(tmp_path / name, Bomb(trace))
    law = "must be a whole safetensors file" if name.endswith("safetensors") else "Pickles .* are not read"
    with pytest.raises((DataError, RunError), match=law):
        from_pretrained("swin_tiny", tmp_path / name)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


def test_harmless_pickles_are_sent_to_be_converted(swin, tmp_path):
    torch.save(swin, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin.*safetensors\.torch\.save_file"):
        from_pretrained("swin_tiny", tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.bin", ""])
def test_files_that_are_not_there(name, tmp_path):
    with pytest.raises(DataError, match=f"file that exists: got .*{name}"):
        from_pretrained("swin_tiny", tmp_path / name)


def test_damaged_files(swin, saved):
    path = saved(swin)
    path.write_bytes(path.read_bytes()[:1000])
    message = r"model\.safetensors must be a whole safetensors file.*Download it again"
    with pytest.raises(RunError, match=message):
        from_pretrained("swin_tiny", path)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("swin_tiny", 256, "`side` must be left out for swin_tiny, which has one layout, .*: got 256"),
        ("pit_small", 250, "`side` must be a multiple of 32: got 250"),
        ("nest_tiny", "256", "`side` must be a multiple of 32: got '256'"),
    ],
)
def test_a_side_that_a_model_cannot_be_laid_out_for(name, side, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(DataError, match=message):
        from_pretrained(name, path, side=side)


def test_a_checkpoint_for_images_of_another_side(tmp_path):
    prepare()
    theirs = import_module("search_spaces.pretrained.pit_small").reference(256)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = from_pretrained("pit_small", tmp_path / "model.safetensors", side=256)
    assert ours.stages[0].position.table.shape == (31, 31, 144)
    with pytest.raises(DataError, match=r"stages\.0\.position\.table \(31, 31, 144\) for \(27, 27, 144\)"):
        from_pretrained("pit_small", tmp_path / "model.safetensors")


def test_tables_of_offsets_are_read_for_the_images_that_will_come(tmp_path):
    """The reference's tables mean other offsets on maps of another size."""
    model = import_module("search_spaces.pretrained.mvitv2_tiny")
    theirs = with_random_weights(model.reference(), 192)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    expected = answer(theirs, images(192))
    ours = from_pretrained("mvitv2_tiny", tmp_path / "model.safetensors", side=192)
    assert relative(answer(ours, images(192)), expected) < RELATIVE
    ours = from_pretrained("mvitv2_tiny", tmp_path / "model.safetensors")
    assert relative(answer(ours, images(192)), expected) > RELATIVE


@pytest.mark.parametrize("name", ["swin_small", "os.path", "../pretrained/swin_tiny", ["swin_tiny"]])
def test_an_unknown_name_lists_those_that_there_are(name, tmp_path):
    with pytest.raises(DataError, match=r"convnext_tiny, cswin_tiny, .*vit_small: got ") as caught:
        from_pretrained(name, tmp_path / "model.safetensors")
    assert all(point in str(caught.value) for point in POINTS)
    assert repr(name) in str(caught.value)
