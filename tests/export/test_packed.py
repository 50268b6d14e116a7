"""Weights packed at their bits: they come back as they were, and nothing but weights comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nas.architecture import to_json
from nas.calibration import gathering
from nas.errors import ExportError
from nas.export import Subnet, export_subnet
from nas.export.packed import load_packed, save_packed
from nas.export.subnet import load_subnet
from nas.layers import Bits, Block, Global, Mlp, PatchMerging, PatchStem
from nas.layers.ffns.depthwise import DepthwiseMlp
from nas.layers.quantizers import QuantizedLinear
from nas.quantize import DYNAMIC, Quantization, at_bits, fake_quantize
from nas.space import Space
from nas.supernet import Supernet
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def block(mixer: Bits, ffn: Bits, depthwise: bool = False) -> Block:
    return Block(Global(2, bits=mixer), (DepthwiseMlp if depthwise else Mlp)(2, bits=ffn))


ARCHITECTURE = HierarchicalTransformer(
    PatchStem(2),
    (
        Stage(16, (block(Bits(8, 8), Bits(4)), block(Bits(4, 8), Bits(8), depthwise=True))),
        Stage(24, (block(Bits(16), Bits(8, 8)), block(Bits(2), Bits())), PatchMerging()),
    ),
    classes=3,
)


def subnet(how: Quantization = Quantization()) -> nn.Module:
    supernet = Supernet(build, Space(ARCHITECTURE), quantization=how)
    buffers = supernet.calibrate(ARCHITECTURE, [IMAGES])
    return supernet.extract(ARCHITECTURE, buffers=buffers)


def exported(folder: Path) -> Path:
    given = Subnet(subnet(), to_json(ARCHITECTURE), IMAGES)
    export_subnet(given, folder, formats=("safetensors",), cards=lambda checks: {"card.md": ""})
    return folder


def loaded(folder: Path) -> nn.Module:
    return load_subnet(folder, build, Space(ARCHITECTURE).classes)


@pytest.mark.parametrize("how", [Quantization(), Quantization(DYNAMIC, 2)])
def test_it_answers_as_before(how, tmp_path):
    module = subnet(how)
    save_packed(module, tmp_path / "model.safetensors")
    back = load_packed(build(ARCHITECTURE), tmp_path / "model.safetensors").eval()
    with torch.inference_mode():
        assert torch.equal(back(IMAGES), module(IMAGES))
    assert {type(m) for m in back.modules()} == {type(m) for m in module.modules()}


def test_an_export_is_loaded_by_its_folder(tmp_path):
    module, back = subnet(), loaded(exported(tmp_path / "abc"))
    with torch.inference_mode():
        assert torch.equal(back(IMAGES), module(IMAGES))


def test_the_file_holds_what_is_predicted(tmp_path):
    supernet = Supernet(build, Space(ARCHITECTURE))
    save_packed(subnet(), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    ranges = sum(name.endswith((".low", ".high")) for name in tensors)
    assert ranges > 0
    payload = sum(t.numel() * t.element_size() for t in tensors.values())
    assert payload == supernet.size_bytes(ARCHITECTURE) + 4 * ranges


def test_a_module_of_32_bits_is_written_as_any_other(tmp_path):
    module = nn.Linear(3, 2)
    save_packed(module, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == {"weight", "bias"}
    assert torch.equal(load_packed(nn.Linear(3, 2), tmp_path / "model.safetensors").weight, module.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8, torch.bool])
def test_weights_of_another_type_are_refused(dtype, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2, 3, dtype=dtype), "bias": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"`weight` must be torch.float32: got {dtype}"):
        load_packed(nn.Linear(3, 2), path)


def test_what_a_file_lacks_is_named(tmp_path):
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r'Missing key.*"bias"'):
        load_packed(nn.Linear(3, 2), tmp_path / "model.safetensors")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 32), nn.Linear(32, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(words))


def test_tied_weights_are_written_once(tmp_path):
    module, _ = at_bits(Tied(), lambda name: Bits(16), Quantization())
    with torch.no_grad():
        module.head.weight.copy_(module.head.weight.half())
    save_packed(module, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == {"embedding.weight"}
    back = load_packed(Tied(), tmp_path / "model.safetensors")
    assert back.head.weight is back.embedding.weight
    assert torch.equal(back.head.weight, module.head.weight)


@pytest.mark.parametrize("how", [Quantization(), Quantization(DYNAMIC)])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8)])
def test_tied_layers_round_their_inputs_again(bits, how, tmp_path):
    words = torch.arange(9)[None]
    module, _ = at_bits(Tied(), lambda name: bits, how)
    with torch.no_grad():
        module.head.weight.copy_(fake_quantize(module.head.weight, bits.weight))
        with gathering(module):
            module(words)
    save_packed(module, tmp_path / "model.safetensors")
    back = load_packed(Tied(), tmp_path / "model.safetensors").eval()
    assert type(back.head) is QuantizedLinear
    with torch.inference_mode():
        assert torch.equal(back(words), module.eval()(words))


def rewritten(folder: Path, header=None, tensors=None) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    kept = load_file(path)
    if header:
        data = json.loads(metadata["nas"])
        metadata = {"nas": header if isinstance(header, str) else json.dumps(header(data))}
    save_file(tensors(kept) if tensors else kept, path, metadata)


Q = "stages.0.blocks.0.mixer.q.weight"
LOW, HIGH = (f"stages.0.blocks.0.mixer.q.quantizer.{end}" for end in ("low", "high"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("no JSON", "Expecting value"),
        ("[]", "must be as `nas export` writes it"),
        (lambda h: h | {"version": 2}, "its version is 2"),
        (lambda h: h | {"version": True}, "its version is True"),
        (lambda h: h | {"nested": "yes"}, "`nested` is 'yes'"),
        (lambda h: h | {"bits": {Q: [3, 32]}}, "must be one of 2, 4, 8, 16, 32: got 3"),
        (lambda h: h | {"bits": {Q: "8"}}, "`weight` of Bits must be"),
        (lambda h: h | {"bits": {Q: [8] * 9}}, "must be as `nas export` writes it"),
        (lambda h: h | {"bits": h["bits"] | {"evil": [8, 8]}}, "has bits for `evil`, which is no weight"),
        (lambda h: h | {"bits": {}}, "scales` is unknown"),
        (lambda h: h | {"bits": h["bits"] | {Q: [4, 8]}}, r"mixer\.q\.quantizer\.high` is unknown"),
        (lambda h: h | {"bits": h["bits"] | {Q: [16, 8]}}, "weights of 4 or 8 bits"),
        (lambda h: h | {"activations": "os.system"}, "must be calibrated or dynamic: got 'os.system'"),
        (lambda h: h | {"images": -1}, "batch size of deployment, 1 or more: got -1"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(header, message, tmp_path):
    folder = exported(tmp_path / "abc")
    rewritten(folder, header=header)
    with pytest.raises(ExportError, match=message):
        loaded(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != Q}, f"`{Q}` is missing"),
        (lambda t: t | {"evil": torch.zeros(1)}, "`evil` is unknown"),
        (lambda t: t | {Q: t[Q][:-1]}, "of 8 bits must have 256 bytes"),
        (lambda t: t | {Q: t[Q].float()}, f"`{Q}` is not packed as 8 bits of shape"),
        (lambda t: t | {f"{Q}.scales": torch.ones(2, 2)}, f"`{Q}` is not packed as 8 bits"),
        (lambda t: t | {"head.linear.bias": torch.ones(1)}, "`head.linear.bias` has shape"),
        (lambda t: t | {"head.linear.bias": t["head.linear.bias"].long()}, "has shape .* of torch.int64"),
        (lambda t: t | {f"{Q}.scales": -t[f"{Q}.scales"]}, "scales` holds numbers that are no scales"),
        (lambda t: t | {f"{Q}.scales": t[f"{Q}.scales"] * torch.inf}, "holds numbers that are no scales"),
        (lambda t: t | {LOW: torch.tensor(torch.nan)}, "has a range from nan to"),
        (lambda t: t | {LOW: torch.tensor(0.5)}, "has a range from 0.5 to .*, which must hold 0"),
        (lambda t: t | {HIGH: torch.tensor(torch.inf)}, "has a range from .* to inf"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, message, tmp_path):
    folder = exported(tmp_path / "abc")
    rewritten(folder, tensors=tensors)
    with pytest.raises(ExportError, match=message):
        loaded(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
def test_damaged_files_load_or_are_refused(name, tmp_path):
    """Whatever byte is wrong: a module or our error, no other and no file beside."""
    folder = exported(tmp_path / "abc")
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(300):
        data = bytearray(whole)
        # most of the bytes of the weights are numbers, of which each is as good as another: aim at the header
        at = int(rng.integers(0, len(data) if i % 3 == 0 else min(len(data), 6000)))
        if i % 5 == 0:
            del data[at:]
        else:
            data[at] = rng.integers(256)
        (folder / name).write_bytes(data)
        try:
            assert isinstance(loaded(folder), nn.Module)
        except ExportError:
            refused += 1
    assert refused > 100
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]
    assert len(list(folder.iterdir())) == 3


def test_an_architecture_far_larger_than_the_file_is_refused_before_it_is_built(tmp_path: Path) -> None:
    folder = exported(tmp_path / "abc")
    data = json.loads((folder / "architecture.json").read_text())
    data["stages"][0]["blocks"][0]["ffn"]["ratio"] = 1e9
    (folder / "architecture.json").write_text(json.dumps(data))
    with pytest.raises(ExportError, match=r"the architecture has .* weights, the file holds .* at most"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1.running_mean", torch.nan, "`1.running_mean` holds numbers that are not finite"),
        ("1.running_var", torch.inf, "`1.running_var` holds numbers that are no variances"),
        ("1.running_var", -1.0, "`1.running_var` holds numbers that are no variances"),
        ("0.weight", torch.nan, "`0.weight` holds numbers that are not finite"),
    ],
)
def test_statistics_that_no_inputs_have_are_refused(name, value, message, tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    module.register_buffer("mask", torch.full((2,), -torch.inf))  # may be anything
    save_packed(module, tmp_path / "a.safetensors")
    load_packed(module, tmp_path / "a.safetensors")
    with torch.no_grad():
        module.state_dict()[name].fill_(value)
    save_packed(module, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load_packed(module, tmp_path / "a.safetensors")
