"""Subnets as `transformers` models."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nas.architecture import to_json
from nas.calibration import gathering
from nas.errors import ExportError
from nas.export import Subnet, export_subnet
from nas.layers import Bits, Block, Global, Mlp, PatchMerging, PatchStem, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.quantize import Quantization, at_bits
from nas.space import Space
from nas.supernet import Supernet
from search_spaces import huggingface
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build
from search_spaces.pretrained.libraries import prepare

prepare()
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ARCHITECTURE = HierarchicalTransformer(
    PatchStem(4),
    (
        Stage(16, (Block(Window(1, 2, shift=True, bits=Bits(8, 8)), Mlp(2, bits=Bits(4))),)),
        Stage(24, (Block(DepthwiseConv(3), Mlp(1)), Block(Global(2), Mlp(2))), PatchMerging()),
    ),
    classes=5,
    channels=3,
)


def subnet() -> Subnet:
    supernet = Supernet(build, Space(ARCHITECTURE))
    buffers = supernet.calibrate(ARCHITECTURE, [IMAGES])
    return Subnet(supernet.extract(ARCHITECTURE, buffers=buffers), to_json(ARCHITECTURE), IMAGES)


def exported(folder: Path, given: Subnet) -> Path:
    export_subnet(given, folder, formats=("huggingface",), cards=lambda checks: {})
    return folder / "huggingface"


def test_the_auto_classes_read_an_export(tmp_path):
    given = subnet()
    folder = exported(tmp_path / "abc", given)
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        answer = model(IMAGES, labels=torch.tensor([0, 1, 2]))
        torch.testing.assert_close(answer.logits, given.module(IMAGES))
    assert answer.loss > 0
    assert type(AutoModel.from_pretrained(folder)) is type(model)
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "nas-hierarchical"
    assert config.num_labels == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "must hold a HierarchicalTransformer: got None"),
        ({"architecture": {"type": "Popen"}}, "got type='Popen'"),
        ({"architecture": {"type": "PatchStem", "patch": 4}}, "must hold a HierarchicalTransformer: got"),
        ({"bits": "{}"}, "must be as `nas export` writes it"),
        ({"architecture": [1]}, r"must hold an architecture: got \[1\]"),
        (
            {"architecture": {"classes": 1_000_001}},
            "`classes` in a config must be a number from 1 to 1,000,000",
        ),
    ],
)
def test_a_config_builds_architectures_alone(change, message, tmp_path):
    folder = exported(tmp_path / "abc", subnet())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises((ExportError, ValueError), match=message):
        AutoModelForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.head.linear.bias"), "`model.head.linear.bias` is missing"),
        (lambda weights: weights["model.head.linear.bias"].fill_(math.nan), "numbers that are not finite"),
        (lambda weights: weights[next(n for n in weights if n.endswith(".low"))].fill_(5.0), "range from 5"),
    ],
)
def test_weights_that_are_missing_or_none_are_refused(change, message, tmp_path):
    """Else they would be what happens to be in memory."""
    folder = exported(tmp_path / "abc", subnet())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for auto in (AutoModel, AutoModelForImageClassification):
        with pytest.raises(ExportError, match=message):
            auto.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("classifier.weight"), "`classifier.weight` is missing"),
        (lambda weights: weights["classifier.weight"].fill_(math.nan), "numbers that are not finite"),
        (lambda weights: weights.update(other=torch.zeros(1)), "`other` is of no part of it"),
    ],
)
def test_so_are_those_of_a_class_of_transformers(change, message, tmp_path):
    huggingface.save(Wrapped().eval(), {"type": "V"}, tmp_path, IMAGES)
    huggingface.load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=message):
        huggingface.load(tmp_path)


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def of_another_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(folder.parent / "other.safetensors"), "../other.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("own", [True, False], ids=["ours", "stock"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "must hold a model of transformers, but"),
        (of_another_folder, r"but: it has no model\.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "must hold a model of transf"),
        (lambda folder: rewrite(folder, quantization_config={"quant_method": "awq"}), "must hold a model of"),
        (lambda folder: rewrite(folder, quantization_config=3), "must hold a model of transformers, but"),
    ],
    ids=["truncated", "of another folder", "empty", "quantized", "no quantization"],
)
def test_folders_that_are_damaged_are_told(damage, message, own, tmp_path):
    """By one kind of error, whatever `transformers` makes of them."""
    folder = tmp_path / "huggingface"
    if own:
        given = subnet()
        huggingface.save(given.module, given.architecture, folder, IMAGES)
    else:
        huggingface.save(Wrapped().eval(), {"type": "V"}, folder, IMAGES)
    huggingface.load(folder)
    damage(folder)
    with pytest.raises(ExportError, match=message):
        huggingface.load(folder)


def test_weights_of_other_sizes_are_told(tmp_path):
    given = subnet()
    huggingface.save(given.module, given.architecture, tmp_path, IMAGES)
    rewrite(tmp_path, architecture=to_json(replace(ARCHITECTURE, channels=1)))
    with pytest.raises(ExportError, match="must hold weights of the sizes that its config says"):
        huggingface.load(tmp_path)


def test_weights_are_those_that_were_written_whatever_a_config_says(tmp_path):
    given = subnet()
    folder = exported(tmp_path / "abc", given)
    rewrite(folder, dtype="float16")
    for model in (huggingface.load(folder), AutoModel.from_pretrained(folder)):
        with torch.inference_mode():
            torch.testing.assert_close(model(IMAGES).logits, given.module(IMAGES))
    stock = Wrapped().eval()
    huggingface.save(stock, {"type": "V"}, tmp_path / "stock", IMAGES)
    rewrite(tmp_path / "stock", dtype="float16")
    with torch.inference_mode():
        torch.testing.assert_close(huggingface.load(tmp_path / "stock")(IMAGES).logits, stock(IMAGES))
    half = AutoModel.from_pretrained(folder, dtype=torch.float16)
    assert next(half.parameters()).dtype == torch.float16


def test_a_class_of_transformers_is_no_builder_of_a_user(tmp_path):
    huggingface.save(Wrapped().eval(), {"type": "V"}, tmp_path, IMAGES)
    with pytest.raises(ExportError, match="must hold a model of a builder of yours, but holds ViTFor"):
        huggingface.load(tmp_path, build=Wrapped)


def test_weights_that_are_pickled_are_not_read(tmp_path):
    huggingface.save(Wrapped().eval(), {"type": "V"}, tmp_path, IMAGES)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises((ExportError, OSError)):
        huggingface.load(tmp_path)


def test_what_was_loaded_is_told_to_who_asks(tmp_path):
    folder = exported(tmp_path / "abc", subnet())
    model, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, huggingface.HierarchicalForImageClassification)
    assert not told["missing_keys"]


class Wrapped(nn.Module):
    """As people wrap a model to get a tensor of it."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=4,
            num_labels=5,
        )
        self.vit = ViTForImageClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit(x).logits


def test_a_stock_model_is_written_as_its_own_class(tmp_path):
    module = Wrapped().eval()
    folder = exported(tmp_path / "abc", Subnet(module, {"type": "ViT"}, IMAGES))
    stock = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(stock(IMAGES).logits, module(IMAGES))


def test_sizes_that_no_stock_class_has_are_named(tmp_path):
    module = Wrapped()
    module.vit.vit.layers[1].mlp = Wrapped().vit.vit.layers[1].mlp
    for name, layer in list(module.vit.vit.layers[1].named_modules()):
        if isinstance(layer, nn.Linear) and layer.out_features == 32:
            parent, _, last = name.rpartition(".")
            setattr(module.vit.vit.layers[1].get_submodule(parent), last, nn.Linear(16, 8))
        if isinstance(layer, nn.Linear) and layer.in_features == 32:
            parent, _, last = name.rpartition(".")
            setattr(module.vit.vit.layers[1].get_submodule(parent), last, nn.Linear(8, 16))
    with pytest.raises(ExportError, match="but ViTForImageClassification found others"):
        exported(tmp_path / "abc", Subnet(module.eval(), {"type": "ViT"}, IMAGES))
    assert not (tmp_path / "abc").exists()


@dataclass(frozen=True)
class Mine:
    hidden: tuple[int, ...]
    inputs: int = 32


class MyNet(nn.Module):
    """As people write them: with a part that no stock class has, and numbers that no file holds."""

    def __init__(self, architecture: Mine) -> None:
        super().__init__()
        vit = Wrapped(len(architecture.hidden)).vit
        for layer, hidden in zip(vit.vit.layers, architecture.hidden, strict=True):
            for part in (layer.mlp,):
                for name, inner in list(part.named_modules()):
                    if isinstance(inner, nn.Linear):
                        sizes = (16, hidden) if inner.in_features == 16 else (hidden, 16)
                        part.set_submodule(name, nn.Linear(*sizes))
        self.vit = vit
        self.register_buffer("shift", torch.arange(5.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit(x).logits + self.shift


class WrappedNet(MyNet):
    """Which merely wraps one of transformers, whose layers differ."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit(x).logits


@pytest.fixture
def registered():
    before = dict(huggingface.REGISTERED)
    yield huggingface.REGISTERED
    huggingface.REGISTERED.clear()
    huggingface.REGISTERED.update(before)


@pytest.mark.parametrize("build", [MyNet, WrappedNet])
@pytest.mark.parametrize("inputs", [8, 32])
def test_any_builder_has_a_class_of_its_own(build, inputs, tmp_path, registered):
    architecture = Mine((32, 16), inputs)
    bits = Bits(8, inputs)
    supernet = Supernet(
        build, Space(architecture), bits=lambda architecture, name: bits if "mlp" in name else Bits()
    )
    module = supernet.extract(architecture, buffers=supernet.calibrate(architecture, [IMAGES]))
    given = Subnet(module, to_json(architecture), IMAGES, build, {"Mine": Mine})
    folder = exported(tmp_path / "abc", given)
    assert "nas-mine" in registered
    model = huggingface.load(folder)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES).logits, module(IMAGES))
        answer = AutoModelForImageClassification.from_pretrained(folder)(
            IMAGES, labels=torch.tensor([0, 1, 2])
        )
    assert answer.loss > 0
    assert AutoConfig.from_pretrained(folder).num_labels == 5
    del registered["nas-mine"]
    with pytest.raises(
        ExportError, match=r"known here: got OfImages of the type nas-mine\. Load it with the"
    ):
        huggingface.load(folder)
    with torch.inference_mode():  # as in another process
        torch.testing.assert_close(huggingface.load(folder, build, [Mine])(IMAGES).logits, module(IMAGES))


def test_a_builder_keeps_the_name_that_it_was_registered_under(tmp_path, registered):
    huggingface.register("own-name", MyNet, [Mine])
    architecture = Mine((16,))
    module = MyNet(architecture).eval()
    folder = exported(tmp_path / "abc", Subnet(module, to_json(architecture), IMAGES, MyNet, {"Mine": Mine}))
    assert AutoConfig.from_pretrained(folder).model_type == "nas-own-name"
    assert "nas-mine" not in registered


class Negative(MyNet):
    """With architectures of the same name, and weights of the same names and shapes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def test_the_builder_that_is_given_counts_more_than_one_of_the_same_name(tmp_path, registered):
    architecture = Mine((16,))
    module = MyNet(architecture).eval()
    folder = exported(tmp_path / "abc", Subnet(module, to_json(architecture), IMAGES, MyNet, {"Mine": Mine}))
    huggingface.register("mine", Negative, [Mine])
    with torch.inference_mode():
        expected = module(IMAGES)
        torch.testing.assert_close(huggingface.load(folder)(IMAGES).logits, -expected)
        torch.testing.assert_close(huggingface.load(folder, MyNet, [Mine])(IMAGES).logits, expected)


class OfWords(nn.Module):
    def __init__(self, architecture: Mine) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, architecture.hidden[0]), nn.Linear(architecture.hidden[0], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x).mean(1))


def test_tokens_have_their_own_auto_class(tmp_path, registered):
    module, tokens = OfWords(Mine((4,))).eval(), torch.tensor([[0, 6, 2], [1, 1, 5]])
    folder = exported(tmp_path / "abc", Subnet(module, to_json(Mine((4,))), tokens, OfWords, {"Mine": Mine}))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=tokens).logits, module(tokens))


@dataclass(frozen=True)
class Named:
    """With a field that is called as a number of ours."""

    classes: tuple[str, ...]
    shape: str


class OfNames(nn.Module):
    def __init__(self, architecture: Named) -> None:
        super().__init__()
        self.shape, n = architecture.shape, len(architecture.classes)
        self.layer = nn.Conv2d(3, n, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.layer(x)
        return {"maps": maps, "classes": maps.mean((2, 3)), "number": maps.mean((1, 2, 3))}[self.shape]


@pytest.mark.parametrize(
    ("shape", "labels", "number", "loss"),
    [
        ("maps", torch.randint(4, (3, 16, 16)), None, nn.functional.cross_entropy),
        ("classes", torch.tensor([0, 1, 3]), 4, nn.functional.cross_entropy),
        ("number", torch.tensor([0.5, 1, 3]), 1, nn.functional.mse_loss),
    ],
)
def test_outputs_of_every_kind_have_labels_and_a_loss(shape, labels, number, loss, tmp_path, registered):
    architecture = Named(("a", "b", "c", "d"), shape)
    module = OfNames(architecture).eval()
    huggingface.save(module, to_json(architecture), tmp_path, IMAGES, OfNames, {"Named": Named})
    model = huggingface.load(tmp_path)
    assert number in (None, model.config.num_labels)
    with torch.inference_mode():
        found = model(IMAGES, labels=labels)
        torch.testing.assert_close(found.logits, module(IMAGES))
        torch.testing.assert_close(found.loss, loss(module(IMAGES), labels))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "nas-x", "architectures": ["torch"]}'])
def test_folders_that_hold_no_model_are_told(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ExportError, match="must hold a model"):
        huggingface.load(tmp_path)


def test_a_stock_class_rounds_no_inputs(tmp_path):
    module, _ = at_bits(Wrapped().eval(), lambda name: Bits(8, 8), Quantization())
    with gathering(module), torch.no_grad():
        module(IMAGES)
    with pytest.raises(ExportError, match=r"must hold what its builder makes again.* got Wrapped"):
        exported(tmp_path / "abc", Subnet(module, {"type": "ViT"}, IMAGES))


def test_other_builders_are_named(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.mean((1, 2)))

    with pytest.raises(ExportError, match=r"must hold what its builder makes again.*got Net \(of an unknown"):
        exported(tmp_path / "abc", Subnet(Net().eval(), {"type": "Net"}, IMAGES))
    assert huggingface.HierarchicalForImageClassification.classes.keys() >= {
        "Window",
        "Mlp",
        "Stage",
        "Bits",
        "RepBN",
    }
