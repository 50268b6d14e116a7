"""The exported folder, read by a Python in which the package does not exist."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export.nets import Branching, trained
from safetensors.torch import load_file
from torch import nn

from nas.architecture import to_json
from nas.errors import ExportError
from nas.export import FORMATS, Check, Subnet, export_subnet
from nas.export.checks import Evidence, _problems, check
from nas.export.payload import predicted_bytes
from nas.export.subnet import load_subnet
from nas.layers import Bits, Block, Global, Mlp, PatchStem
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Batch, Metric, Tally
from search_spaces import hierarchical
from search_spaces.hierarchical import HierarchicalTransformer, Stage

ARCHITECTURE = {"type": "Net", "width": 8}
X = torch.rand(2, 1, 4, 4)

ALONE = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("nas", "search_spaces", "export"):
            raise ModuleNotFoundError(f"{name} must not be needed")

sys.meta_path.insert(0, Absent())
import numpy as np, onnxruntime, torch
from safetensors.torch import load_file

weights = load_file("model.safetensors")
x = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 1, 4, 4)
onnx = onnxruntime.InferenceSession("model.onnx").run(["y"], {"x": x})[0]
pt2 = torch.export.load("model.pt2").module()(torch.from_numpy(x)).detach().numpy()
np.savez("answers.npz", onnx=onnx, pt2=pt2)
"""


def exported(folder: Path, module: nn.Module | None = None, **settings: object) -> Path:
    export_subnet(Subnet(module or trained(), ARCHITECTURE, X), folder, cards=card, **settings)  # type: ignore[arg-type]
    return folder


def card(checks: Sequence[Check]) -> dict[str, str]:
    return {"card.md": " ".join(found.format for found in checks)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_runs_without_the_package(tmp_path: Path) -> None:
    folder = exported(tmp_path / "exports" / "abc")
    subprocess.run([sys.executable, "-c", ALONE], cwd=folder, check=True, timeout=120)
    x = torch.linspace(0, 1, 48).reshape(3, 1, 4, 4)
    with torch.no_grad():
        expected = trained().eval()(x).numpy()
    answers = np.load(folder / "answers.npz")
    for kind in ("onnx", "pt2"):
        np.testing.assert_allclose(answers[kind], expected, rtol=1e-4, atol=1e-5)


def test_the_folder_holds_weights_architecture_and_card(tmp_path: Path) -> None:
    folder = exported(tmp_path / "abc")
    assert names(folder) == [
        "architecture.json",
        "card.md",
        "model.onnx",
        "model.pt2",
        "model.safetensors",
    ]
    assert json.loads((folder / "architecture.json").read_text()) == ARCHITECTURE
    weights, state = load_file(folder / "model.safetensors"), trained().state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert names(tmp_path) == ["abc"]


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    folder = exported(tmp_path / "abc", formats=("safetensors",))
    assert names(folder) == ["architecture.json", "card.md", "model.safetensors"]


def test_an_export_replaces_the_one_before_it(tmp_path: Path) -> None:
    exported(tmp_path / "abc", formats=("safetensors", "onnx"))
    exported(tmp_path / "abc", formats=("safetensors",))
    assert names(tmp_path / "abc") == ["architecture.json", "card.md", "model.safetensors"]
    assert names(tmp_path) == ["abc"]


def test_an_export_replaces_whatever_is_in_its_place(tmp_path: Path) -> None:
    """A link itself, and not what it leads to."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (tmp_path / "abc").symlink_to("elsewhere")
    (tmp_path / "abd").write_text("no folder")
    for name in ("abc", "abd"):
        exported(tmp_path / name, formats=("safetensors",))
        assert names(tmp_path / name) == ["architecture.json", "card.md", "model.safetensors"]
        assert not (tmp_path / name).is_symlink()
    assert names(tmp_path) == ["abc", "abd", "elsewhere"]
    assert names(tmp_path / "elsewhere") == ["precious"]


def test_what_killed_exports_left_goes(tmp_path: Path) -> None:
    for name in (f".abc.{os.getpid()}", f".abc.{2**22 + 1}", ".abc.1", ".other.5"):  # 1 lives
        (tmp_path / name).mkdir()
    exported(tmp_path / "abc", formats=("safetensors",))
    assert names(tmp_path) == [".abc.1", ".other.5", "abc"]


def test_what_is_no_process_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".abc.99999999999999999999").mkdir()
    exported(tmp_path / "abc")
    assert names(tmp_path) == ["abc"]


def test_an_architecture_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    """But a source of numbers without end."""
    folder = exported(tmp_path / "abc", formats=("safetensors",))
    (folder / "architecture.json").unlink()
    (folder / "architecture.json").symlink_to("/dev/zero")
    with pytest.raises(ExportError, match=r"there is no file architecture\.json"):
        load_subnet(folder, lambda _: nn.Linear(1, 1), {"Net": Net})


@dataclass(frozen=True)
class Told:
    """A task whose targets are of a kind."""

    kind: torch.dtype
    metric: Metric = Metric("error", "", "minimize")

    def tallies(self, outputs, batch):
        return {"error": Tally.of(outputs.flatten(1).sum(1))}


def evidence_of(module, targets, kind):
    """Sixteen batches of two."""
    batches = [
        Batch(
            (torch.rand(2, 4, generator=torch.Generator().manual_seed(i)),), torch.zeros(targets, dtype=kind)
        )
        for i in range(16)
    ]
    with torch.inference_mode():
        return Evidence(batches, [module(b.inputs[0]) for b in batches], Told(kind))


class Masked(nn.Module):
    """Rules out a class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).masked_fill(torch.tensor([False, True, False]), -math.inf)


def test_answers_may_be_infinite(tmp_path: Path) -> None:
    module = Masked().eval()
    subnet = Subnet(module, ARCHITECTURE, torch.rand(2, 4), lambda _: Masked(), {"Net": Net})
    evidence = evidence_of(module, (2,), torch.long)
    found = export_subnet(
        subnet, tmp_path / "a", formats=["safetensors", "onnx", "pt2"], cards=card, evidence=evidence
    )
    assert all(of.largest < 1e-6 and of.agreement == 100 for of in found)
    for change, message in ((lambda a: a.masked_fill(a.isinf(), 0.0), "inf"), (lambda a: a + 0.5, r"0\.\d+")):
        other = replace(evidence, answers=[change(a) for a in evidence.answers])
        with pytest.raises(ExportError, match=f"difference is {message} of the largest output"):
            export_subnet(subnet, tmp_path / "a", formats=["onnx"], cards=card, evidence=other)


@dataclass(frozen=True)
class Determination(Told):
    """A metric of all targets together, of which one alone has none."""

    def tallies(self, outputs, batch):
        spread = (batch.targets - batch.targets.mean()).square().sum()
        return {"error": Tally.of((1 - (outputs[:, 0] - batch.targets).square().sum() / spread)[None])}


def test_a_metric_is_that_of_all_inputs(tmp_path: Path) -> None:
    module = nn.Linear(4, 1).eval()
    x = torch.rand(16, 1, 4, generator=torch.Generator().manual_seed(0))
    batches = [Batch((one,), one.sum(1)) for one in x]
    with torch.inference_mode():
        answers = [module(b.inputs[0]) for b in batches]
        whole = Determination(torch.float32).tallies(torch.cat(answers), Batch((x[:, 0],), x.sum((1, 2))))
    evidence = Evidence(batches, answers, Determination(torch.float32))
    subnet = Subnet(module, ARCHITECTURE, torch.rand(2, 4))
    (found,) = export_subnet(subnet, tmp_path / "a", formats=["onnx"], cards=card, evidence=evidence)
    assert found.batch == 1
    assert found.metric == ("error", pytest.approx(whole["error"].mean), pytest.approx(whole["error"].mean))


class Tabled(nn.Module):
    """Adds parts of tables that no file of weights holds, or one that does, and takes by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("long", torch.rand(900, 4, generator=torch.Generator().manual_seed(0)), False)
        self.register_buffer("kept", torch.rand(500, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("index", torch.arange(500).flip(0).view(20, 25))

    def forward(self, x):
        there = (x.unsqueeze(1) + self.long[:700].unsqueeze(0)).mean(1)
        turned = x.repeat(1, 125)[:, self.index.view(-1)] + self.kept.unsqueeze(0)
        return self.layer(there + turned.mean(1, keepdim=True))


@pytest.mark.parametrize("name", ["onnx", "onnx-portable", "onnx-fp32"])
def test_tables_are_no_weights(name, tmp_path: Path) -> None:
    module = Tabled().eval()
    (found,) = export_subnet(
        Subnet(module, ARCHITECTURE, torch.rand(2, 4)), tmp_path / "a", formats=[name], cards=card
    )
    assert found.weight_bytes <= found.predicted_bytes + 16


class OneEach(nn.Linear):
    def forward(self, x):
        return super().forward(x)[:, 0]


def test_answers_may_be_one_number_each(tmp_path: Path) -> None:
    subnet = Subnet(OneEach(4, 1).eval(), ARCHITECTURE, torch.rand(2, 4))
    found = export_subnet(subnet, tmp_path / "a", formats=["safetensors", "onnx", "pt2"], cards=card)
    assert [of.agreement for of in found] == [None] * 3


def test_classes_are_as_many_as_the_task_says() -> None:
    """Embeddings look like logits."""
    evidence = evidence_of(nn.Linear(4, 3), (2,), torch.long)
    assert evidence.classes == -1
    object.__setattr__(evidence.task, "classes", 5)
    assert evidence.classes is None


def test_what_a_killed_export_set_aside_comes_back(tmp_path: Path) -> None:
    before = names(exported(tmp_path / "abc", formats=("safetensors",)))
    (tmp_path / "abc").rename(tmp_path / f".abc.{2**22 + 1}.old")
    with pytest.raises(ExportError):
        exported(tmp_path / "abc", Branching(), formats=("pt2",))
    assert names(tmp_path) == ["abc"]
    assert names(tmp_path / "abc") == before


def test_every_format_can_be_timed(tmp_path: Path) -> None:
    found: list[Check] = []
    ran: list[object] = []

    def cards(checks: Sequence[Check]) -> dict[str, str]:
        found.extend(checks)
        return {}

    def timed(runs: Sequence[Callable[[], object]]) -> list[tuple[float, float]]:
        ran.extend(run() for run in runs)
        return [(float(i), 0.5) for i in range(len(runs))]

    formats = [name for name in FORMATS if name != "huggingface"]
    given = Subnet(trained(), ARCHITECTURE, X)
    export_subnet(given, tmp_path / "abc", formats=formats, cards=cards, timed=timed, threads=1)
    assert [(f.format, f.latency_ms) for f in found] == [(name, float(i)) for i, name in enumerate(formats)]
    assert [np.asarray(y).size for y in ran] == [len(X) * 10] * len(formats)


def few_bits(inputs: int) -> Subnet:
    stages = (Stage(32, (Block(Global(2, bits=Bits(8, inputs)), Mlp(2, bits=Bits(8))),)),)
    architecture = HierarchicalTransformer(PatchStem(4), stages, classes=5, channels=3)
    supernet, images = Supernet(hierarchical.build, Space(architecture)), torch.rand(2, 3, 16, 16)
    buffers = supernet.calibrate(architecture, [images])
    return Subnet(supernet.extract(architecture, buffers=buffers), to_json(architecture), images)


@pytest.mark.parametrize("inputs", [8, 32])
def test_a_simulation_is_not_timed(inputs: int, tmp_path: Path) -> None:
    found: list[Check] = []
    formats = ("safetensors", "onnx", "pt2", "huggingface")
    export_subnet(
        few_bits(inputs),
        tmp_path / "abc",
        formats=formats,
        cards=lambda checks: found.extend(checks) or {},
        timed=lambda runs: [(7.0, 0.5)] * len(runs),
    )
    told = {one.format: one.latency_ms for one in found}
    assert told == dict.fromkeys(formats, None if inputs == 8 else 7.0) | {"onnx": 7.0}


def test_bytes_of_weights_are_told_of_every_format(tmp_path: Path) -> None:
    found: list[Check] = []
    given = few_bits(8)
    export_subnet(given, tmp_path / "abc", formats=list(FORMATS), cards=lambda c: found.extend(c) or {})
    own, floats = predicted_bytes(given.module), predicted_bytes(given.module, 32)
    predicted = {one.format: one.predicted_bytes for one in found}
    whole = predicted.pop("openvino")
    assert own < whole < floats  # only layers of whole numbers have few bits there
    assert predicted == {
        **dict.fromkeys(("safetensors", "onnx", "onnx-portable", "mlflow"), own),
        **dict.fromkeys(("onnx-fp32", "pt2", "huggingface"), floats),
        "onnx-fp16": floats // 2,
    }
    for one in found:
        assert 0.9 * one.predicted_bytes < one.weight_bytes <= one.predicted_bytes, one
    exact = {one.format: one.weight_bytes for one in found}
    assert exact["safetensors"] == own
    assert exact["pt2"] == exact["huggingface"] == floats


ACCURACY = Metric("accuracy", "%", "maximize")


@pytest.mark.parametrize(("ours", "theirs", "fits"), [(5000.0, 5001.0, True), (0.05, 0.06, False)])
def test_what_is_no_percentage_may_differ_by_a_share_of_it(ours, theirs, fits):
    of, rmse = FORMATS["onnx"], Metric("rmse", "K", "minimize")
    found = Check("onnx", 1000, 1, 0, 0, 100, ("rmse", ours, theirs), 1, 0, 0)
    assert _problems(of, found, False, rmse) == ([] if fits else ["its rmse is 0.06 and not 0.05"])


@pytest.mark.parametrize(
    ("n", "ours", "theirs", "unit", "fits"),
    [
        (180, 0.6, 107 / 180, "", True),
        (180, 0.6, 106 / 180, "", False),
        (1000, 0.2667, 0.2684, "", True),
        (1000, 0.2667, 0.2704, "", False),
        (1000, 0.6, 0.598, "K", False),
        (1000, 12.0, 11.97, "", True),
        (1000, 12.0, 11.9, "", False),
    ],
)
def test_a_metric_that_is_1_at_best_may_differ_as_one_in_percent(n, ours, theirs, unit, fits):
    found = Check("onnx", n, 1, 0, 0, 100, ("R2", ours, theirs), 1, 0, 0)
    assert (not _problems(FORMATS["onnx"], found, False, Metric("R2", unit, "maximize"))) == fits


def test_metrics_that_are_both_infinite_are_the_same():
    found = Check("onnx", 1000, 1, 0, 0, None, ("R2", -math.inf, -math.inf), 1, 0, 0)
    assert _problems(FORMATS["onnx"], found, False, Metric("R2", "", "maximize")) == []


def test_a_metric_may_differ_by_one_input(tmp_path: Path) -> None:
    """In floats 119 and 118 of 180 are a little more than 1 apart."""
    of = FORMATS["onnx"]
    one = Check("onnx", 180, 1, 0, 0, 100, ("accuracy", 100 * 119 / 180, 100 * 118 / 180), 1, None, None)
    assert _problems(of, one, False, ACCURACY) == []
    two = replace(one, metric=("accuracy", 100 * 119 / 180, 100 * 117 / 180))
    assert "its accuracy is 65 and not 66.11" in _problems(of, two, False, ACCURACY)


def test_laws_of_answers_and_bytes():
    of, good = FORMATS["onnx"], Check("onnx", 1000, 1, 0, 0, 99.0, None, 1, 1015, 1000)
    assert _problems(of, good, False, None) == []
    (problem,) = _problems(of, replace(good, agreement=98.9), False, None)
    assert problem == "it gives the same answer to 98.90 %, below 99 %"
    (problem,) = _problems(of, replace(good, weight_bytes=1030), False, None)
    assert problem == "its weights take 1,030 bytes, predicted were 1,000"
    assert _problems(of, replace(good, weight_bytes=60), False, None) == []  # folded, or tied


def test_exports_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "exports").write_text("a file")
    with pytest.raises(ExportError, match=r"exports must be a folder that can be written to: got "):
        exported(tmp_path / "exports" / "abc")


def test_a_file_that_ends_the_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        returncode = -signal.SIGSEGV

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Dead())
    with pytest.raises(ExportError, match=r"fp16.onnx must be a file that .* ends the process by signal 11"):
        exported(tmp_path / "abc", formats=("onnx-fp16",))
    assert names(tmp_path) == []


class Attending(nn.Module):
    """In half precision its file ended the process where the runtime loads it (ONNX Runtime 1.27)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0]).mean(1)
        return y


def test_attention_in_half_precision_is_written_or_refused(tmp_path: Path) -> None:
    given = Subnet(Attending().eval(), ARCHITECTURE, torch.rand(2, 4, 32))
    try:
        export_subnet(given, tmp_path / "abc", formats=("onnx-fp16",), cards=card)
    except ExportError as error:
        assert "ends the process" in str(error)  # noqa: PT017


def test_a_failed_export_leaves_the_one_before_it(tmp_path: Path) -> None:
    folder = exported(tmp_path / "abc", formats=("safetensors",))
    before = names(folder)
    with pytest.raises(ExportError):
        exported(folder, Branching(), formats=("safetensors", "pt2"))
    assert names(folder) == before
    assert names(tmp_path) == ["abc"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "huggingface"])
def test_a_file_that_differs_is_refused_with_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = FORMATS[name]

    def spoilt(subnet: Subnet, path: Path) -> None:
        other = copy.deepcopy(subnet.module)
        with torch.no_grad():
            other.head.bias.add_(torch.arange(10) * 0.1)  # type: ignore[union-attr, operator]
        of.write(replace(subnet, module=other), path)

    monkeypatch.setitem(FORMATS, name, replace(of, write=spoilt))
    message = r"must answer as the subnet does, but the largest difference is \S+ of the largest output"
    with pytest.raises(ExportError, match=message):
        exported(tmp_path / "abc", formats=(name,))
    assert names(tmp_path) == []


def test_an_output_that_is_no_number_is_refused(tmp_path: Path) -> None:
    module = trained()
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    with pytest.raises(ExportError, match="largest difference is nan"):
        exported(tmp_path / "abc", module, formats=("onnx",))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"one of safetensors, onnx, onnx-portable, .*, mlflow: got tflite"):
        exported(tmp_path / "abc", formats=("tflite",))


def test_a_file_that_answers_the_first_inputs_alone(tmp_path, monkeypatch):
    """Three inputs that differ tell; one and the same did not."""
    module = nn.Linear(4, 3)
    evidence = Evidence.random(module, torch.rand(1, 4))
    told = {"load": lambda *_: lambda x: wrong(module, x), "weight_bytes": lambda *_: 0}
    of = replace(FORMATS["pt2"], **told)

    def wrong(module, x):
        answers = module(torch.from_numpy(x)).detach().numpy()
        answers[2:] = answers[:1]
        return answers

    (tmp_path / of.file).touch()
    with pytest.raises(ExportError, match="of 3 inputs it makes: other answers than the module"):
        check(of, tmp_path / of.file, module, evidence)


def test_whole_numbers_are_drawn_up_to_the_largest_of_the_example():
    tokens = torch.tensor([[0, 7, 3]])
    embedding = nn.Embedding(8, 2)
    drawn = torch.cat([b.inputs[0] for b in Evidence.random(embedding, tokens).batches])
    assert drawn.dtype == tokens.dtype
    assert set(drawn.flatten().tolist()) == set(range(8))


@dataclass(frozen=True)
class Net:
    width: int


@pytest.mark.parametrize("error", [KeyError(), ZeroDivisionError("no width"), AssertionError()])
def test_whatever_a_builder_or_a_library_raises_is_one_line(error, tmp_path, monkeypatch):
    folder = exported(tmp_path / "abc")

    def raises(*_):
        raise error

    with pytest.raises(ExportError, match=r"cannot be loaded: .*(KeyError|no width|AssertionError)"):
        load_subnet(folder, raises, {"Net": Net})
    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=raises))
    with pytest.raises(
        ExportError, match=r"model\.pt2 must be written, but: .*(KeyError|no width|AssertionError)"
    ):
        exported(tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Shifted(nn.Module):
    """Adds numbers that no file holds."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("shift", torch.full((3,), shift), persistent=False)

    def forward(self, x):
        return self.layer(x) + self.shift


class ShiftedWhereNegative(Shifted):
    def forward(self, x):
        return self.layer(x) + self.shift * (x[:, :1] < 0)


def test_all_inputs_are_held_against_what_is_loaded_again(tmp_path):
    """Not only the first, which may be one alone."""
    module = ShiftedWhereNegative(1.0).eval()
    batches = [Batch((x,), torch.zeros(1)) for x in torch.tensor([[[1.0] * 4], [[2.0] * 4], [[-1.0] * 4]])]
    with torch.inference_mode():
        evidence = Evidence(batches, [module(b.inputs[0]) for b in batches])
    subnet = Subnet(module, {"type": "Net", "width": 8}, torch.rand(1, 4), None, {"Net": Net})
    subnet = replace(subnet, build=lambda _: ShiftedWhereNegative(2.0))
    with pytest.raises(ExportError, match="must make the same module again, but what the builder makes"):
        export_subnet(subnet, tmp_path / "abc", formats=["safetensors"], cards=card, evidence=evidence)


@pytest.mark.parametrize(
    ("outputs", "targets", "kind", "classes"),
    [
        ((3,), (2,), torch.long, 1),
        ((3, 2, 4), (2, 2, 4), torch.long, 1),
        ((5, 3), (2, 5), torch.long, 2),
        ((1,), (2,), torch.long, None),
        ((3,), (2, 3), torch.float32, None),
    ],
    ids=["classes", "maps", "tokens", "one logit", "numbers"],
)
def test_the_same_answer_is_one_of_classes(outputs, targets, kind, classes, tmp_path):
    """On the axis on which they are: on others, and of numbers, it says nothing."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, math.prod(outputs)), nn.Unflatten(1, outputs)).eval()
    subnet = Subnet(module, ARCHITECTURE, torch.rand(2, 4))
    evidence = evidence_of(module, targets, kind)
    (found,) = export_subnet(subnet, tmp_path / "a", formats=["onnx"], cards=card, evidence=evidence)
    assert found.agreement == (None if classes is None else 100)
    if classes is not None:  # all places of the first of 16 batches say something else
        other = [evidence.answers[0].roll(1, classes), *evidence.answers[1:]]
        with pytest.raises(ExportError, match=r"the same answer to 93\.75 %, below"):
            export_subnet(
                subnet,
                tmp_path / "a",
                formats=["onnx"],
                cards=card,
                evidence=replace(evidence, answers=other),
            )


def test_an_architecture_that_is_no_architecture_by_its_size_is_not_read(tmp_path):
    folder = exported(tmp_path / "abc", formats=("safetensors",))
    (folder / "architecture.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(ExportError, match=r"architecture\.json has 1,048,578 bytes, more than"):
        load_subnet(folder, lambda _: nn.Linear(1, 1), {"Net": Net})


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_what_is_loaded_again_must_answer_as_the_subnet_does(shift, tmp_path):
    subnet = Subnet(
        Shifted(1.0).eval(),
        {"type": "Net", "width": 8},
        torch.rand(2, 4),
        lambda _: Shifted(shift),
        {"Net": Net},
    )
    options = {"formats": ["safetensors"], "cards": card}
    if shift == 1.0:
        export_subnet(subnet, tmp_path / "abc", **options)
        return
    with pytest.raises(ExportError, match="must make the same module again, but what the builder makes"):
        export_subnet(subnet, tmp_path / "abc", **options)
    assert not (tmp_path / "abc").exists()
