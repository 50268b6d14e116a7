"""What subnets learn from each other and from a teacher: as it is defined, gradient by gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training.small import (
    RECIPE,
    assert_gradients,
    bank_gradients,
    made_up_supernet,
    made_up_task,
    one_batch,
    step_gradients,
)

from nas.errors import ExportError, RunError
from nas.experiment import Experiment
from nas.export import Subnet, export_subnet
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import Batch, Metric, Tally
from nas.training import Distillation, Nested, OneBatch, SinglePath, soft_loss, train
from search_spaces import hierarchical


@pytest.fixture(scope="module")
def task():
    return one_batch(made_up_task())


@pytest.fixture
def supernet(task):
    return made_up_supernet(task)


@pytest.fixture
def teacher():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def batch_of(task) -> Batch:
    (batch,) = task.batches("train", seed=0, epoch=0)
    return batch


def architectures(recipe, supernet):
    return recipe.subnets.at(supernet.space, 0, 0, 0)


def test_soft_loss_is_its_definition():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = -(F.softmax(teacher / 2, -1) * F.log_softmax(student / 2, -1)).sum(-1).mean() * 4
    torch.testing.assert_close(soft_loss(student, teacher, 2.0), expected)
    words = torch.randn(2, 7, 11), torch.randn(2, 7, 11)  # (B, L, vocabulary)
    expected = -(F.softmax(words[1], -1) * F.log_softmax(words[0], -1)).sum(-1).mean()
    torch.testing.assert_close(soft_loss(*words), expected)
    torch.testing.assert_close(soft_loss(*(w.movedim(-1, 1) for w in words), classes=1), expected)


def test_shares_of_labels_largest_and_teacher(task, supernet, teacher, tmp_path, monkeypatch):
    distillation = Distillation(in_place=0.5, external=0.2, teacher=teacher, temperature=3.0)
    recipe = replace(RECIPE, distillation=distillation)
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch = batch_of(task)
    outside = teacher(*batch.inputs).detach()
    losses, inside = [], None
    for architecture in architectures(recipe, supernet):
        answer = supernet(architecture, *batch.inputs, train=True)
        label, external = F.cross_entropy(answer, batch.targets), soft_loss(answer, outside, 3.0)
        if inside is None:
            inside = answer.detach()
            losses.append(0.8 * label + 0.2 * external)
        else:
            losses.append(0.4 * label + 0.4 * soft_loss(answer, inside, 3.0) + 0.2 * external)
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


@dataclass(frozen=True)
class Numbers:
    """The task with its classes as numbers, of which the first output is to be the one."""

    base: Any
    metric: Metric = Metric("error", "", "minimize")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def batches(self, *arguments, **named):
        return (Batch(b.inputs, b.targets.float()) for b in self.base.batches(*arguments, **named))

    def loss(self, outputs, batch):
        return F.mse_loss(outputs[:, 0], batch.targets)

    def tallies(self, outputs, batch):
        return {"error": Tally.of((outputs[:, 0] - batch.targets).abs())}


def test_numbers_are_drawn_to_those_of_the_teacher(task, tmp_path, monkeypatch):
    """A softmax over one output would teach nothing."""
    space = hierarchical.space(replace(task, classes=1), widths=((8, 16),), depths=(1, 2))
    supernet = Supernet(hierarchical.build, space)
    recipe = replace(RECIPE, distillation=Distillation(in_place=1.0))
    found = step_gradients(supernet, Numbers(task), recipe, tmp_path, monkeypatch)
    batch = batch_of(task)
    answers = [supernet(a, *batch.inputs, train=True)[:, 0] for a in architectures(recipe, supernet)]
    losses = [F.mse_loss(answers[0], batch.targets.float())]
    losses += [F.mse_loss(answer, answers[0].detach()) for answer in answers[1:]]
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


class Labels(Numbers):
    """Several classes at once, as 0 or 1 for each."""

    def batches(self, *arguments, **named):
        return (
            Batch(b.inputs, F.one_hot(b.targets, 3).float()) for b in self.base.batches(*arguments, **named)
        )

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch.targets)

    def tallies(self, outputs, batch):
        return {"error": Tally.of((outputs.sigmoid() - batch.targets).abs())}


class WholeLabels(Labels):
    """The same, in whole numbers."""

    def batches(self, *arguments, **named):
        return (Batch(b.inputs, b.targets.long()) for b in super().batches(*arguments, **named))

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch.targets.float())


class OneLogit(Numbers):
    """Whether it is the first class, by one logit."""

    def batches(self, *arguments, **named):
        return (Batch(b.inputs, (b.targets == 0).long()) for b in self.base.batches(*arguments, **named))

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], batch.targets.float())


@pytest.mark.parametrize(("kind", "classes"), [(WholeLabels, 3), (OneLogit, 1), (Numbers, 2)])
def test_answers_that_are_no_classes_are_drawn_to_those_of_the_teacher(
    task, tmp_path, monkeypatch, kind, classes
):
    """Whole numbers as targets do not make them any: a softmax over one logit is always 1. Of numbers there
    may be more than there are targets, such as a spread."""
    space = hierarchical.space(replace(task, classes=classes), widths=((8, 16),), depths=(1, 2))
    supernet, other = Supernet(hierarchical.build, space), kind(task)
    recipe = replace(RECIPE, distillation=Distillation(in_place=1.0))
    found = step_gradients(supernet, other, recipe, tmp_path, monkeypatch)
    batch = batch_of(other)
    answers = [supernet(a, *batch.inputs, train=True) for a in architectures(recipe, supernet)]
    losses = [other.loss(answers[0], batch)]
    losses += [F.mse_loss(answer, answers[0].detach()) for answer in answers[1:]]
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


class Twice(nn.Module):
    def forward(self, x):
        return x, x


class Named(nn.Module):
    """A module with a part that answers with names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.named, self.head = Part(width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.named(x)["features"])


class Part(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, width)

    def forward(self, x):
        return {"features": self.linear(x.flatten(1))}


def test_parts_that_answer_with_no_tensor_are_named(task, tmp_path):
    supernet = Supernet(lambda a: Named(a.width), Space(Width(oneof(4, 8))))
    distillation = Distillation(features=0.5, parts="named")
    message = "`distillation.parts` must fit modules that answer with a tensor.*: named gives a dict"
    with pytest.raises(RunError, match=message):
        train(supernet, task, replace(RECIPE, distillation=distillation), tmp_path)


@dataclass(frozen=True)
class Width:
    width: int


def test_a_teacher_stays_as_it_was(task, supernet, teacher, tmp_path):
    teacher.train()
    recipe = replace(RECIPE, epochs=1, distillation=Distillation(external=0.5, teacher=teacher))
    train(supernet, task, recipe, tmp_path)
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(5, 3), r"teacher must answer inputs \(16, 1, 8, 8\), but at step 0.*: RuntimeError: "),
        (Twice(), "teacher must answer with one tensor: got a tuple"),
        (nn.Sequential(nn.Flatten(1), nn.LazyLinear(3)), "answers must be finite, but are not at step 0"),
    ],
    ids=["other inputs", "a tuple", "not finite"],
)
def test_a_teacher_that_does_not_answer_is_named(task, supernet, tmp_path, other, message):
    if "finite" in message:
        other(torch.ones(2, 64))
        nn.init.constant_(other[1].bias, math.nan)
    recipe = replace(RECIPE, distillation=Distillation(external=0.5, teacher=other))
    with pytest.raises(RunError, match=message):
        train(supernet, task, recipe, tmp_path)


def test_logits_of_a_teacher_are_no_targets(task, supernet, tmp_path, monkeypatch):
    """A loss that wants 0 to 1 has no minimum at them."""
    recipe = replace(RECIPE, distillation=Distillation(in_place=1.0))
    found = step_gradients(supernet, Labels(task), recipe, tmp_path, monkeypatch)
    batch = batch_of(task)
    answers = [supernet(a, *batch.inputs, train=True) for a in architectures(recipe, supernet)]
    losses = [F.binary_cross_entropy_with_logits(answers[0], F.one_hot(batch.targets, 3).float())]
    losses += [F.mse_loss(answer, answers[0].detach()) for answer in answers[1:]]
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


def test_a_teacher_answers_as_it_does_in_use(task, supernet, tmp_path, monkeypatch):
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 3))
    recipe = replace(RECIPE, subnets=SinglePath(), distillation=Distillation(external=1.0, teacher=teacher))
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch, (architecture,) = batch_of(task), architectures(recipe, supernet)
    with torch.no_grad():
        outside = teacher.eval()(*batch.inputs)
    loss = soft_loss(supernet(architecture, *batch.inputs, train=True), outside)
    assert_gradients(found, bank_gradients(supernet, loss))


def test_features_of_one_shape_are_pulled_together(task, supernet, tmp_path, monkeypatch):
    recipe = replace(RECIPE, distillation=Distillation(features=2.0, parts=r"stages\.\d+"))
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch = batch_of(task)
    losses, inside, taught, agreed = [], None, {}, 0
    for architecture in architectures(recipe, supernet):
        seen, handles = {}, []
        module = supernet.skeleton(architecture)
        for i, stage in enumerate(module.stages):
            handles.append(
                stage.register_forward_hook(lambda _m, _i, out, i=i, seen=seen: seen.update({i: out[0]}))
            )
        answer = supernet(architecture, *batch.inputs, train=True)
        for handle in handles:
            handle.remove()
        if inside is None:
            inside, taught = answer.detach(), {i: x.detach() for i, x in seen.items()}
            losses.append(F.cross_entropy(answer, batch.targets))
            continue
        alike = [F.mse_loss(x, taught[i]) for i, x in seen.items() if x.shape == taught[i].shape]
        agreed += len(alike)
        pull = torch.stack(alike).mean() if alike else torch.zeros(())
        losses.append(soft_loss(answer, inside) + 2.0 * pull)
    assert agreed
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


def _note(seen, i, _module, _inputs, output):
    seen[i] = output[0]


def test_without_a_largest_there_are_labels_alone(task, supernet, tmp_path, monkeypatch):
    recipe = replace(RECIPE, subnets=SinglePath())
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch, (architecture,) = batch_of(task), architectures(recipe, supernet)
    loss = F.cross_entropy(supernet(architecture, *batch.inputs, train=True), batch.targets)
    assert_gradients(found, bank_gradients(supernet, loss))


def test_the_nested_joint_loss_is_its_definition(task, supernet, tmp_path, monkeypatch):
    """MatFormer: the mean of the label losses of all granularities."""
    recipe = replace(RECIPE, subnets=Nested("ratio"))
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch, nested = batch_of(task), architectures(recipe, supernet)
    assert len(nested) == 3
    losses = [F.cross_entropy(supernet(a, *batch.inputs, train=True), batch.targets) for a in nested]
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


@pytest.mark.parametrize("external", [0.0, 0.4])
def test_one_pass_of_several_is_the_mean_of_their_gradients(
    external, task, supernet, teacher, tmp_path, monkeypatch
):
    """Each subnet on its own images, in one backward pass (ViT-ResNAS)."""
    distillation = Distillation(in_place=0.0, external=external, teacher=teacher if external else None)
    recipe = replace(RECIPE, subnets=OneBatch(3), distillation=distillation)
    found = step_gradients(supernet, task, recipe, tmp_path, monkeypatch)
    batch, several = batch_of(task), architectures(recipe, supernet)
    expected: dict[str, torch.Tensor] = {}
    for i, architecture in enumerate(several):
        images, labels = batch.inputs[0][i::3], batch.targets[i::3]
        answer = supernet(architecture, images, train=True)
        loss = (1 - external) * F.cross_entropy(answer, labels)
        loss = loss + external * soft_loss(answer, teacher(images).detach())
        for name, gradient in bank_gradients(supernet, loss * len(labels) / len(batch.targets)).items():
            expected[name] = expected.get(name, 0) + gradient
    assert_gradients(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_place": 1.5}, "`distillation.in_place` must be from 0 to 1: got 1.5"),
        ({"external": 0.5, "in_place": 0.0}, "must be above 0 where there is a `teacher`, and only there"),
        ({"teacher": nn.Identity()}, "must be above 0 where there is a `teacher`"),
        ({"external": 0.5, "teacher": 3}, "`distillation.teacher` must be an object of Module or a text or"),
        ({"temperature": math.inf}, "both finite"),
        ({"temperature": 0}, "must have a temperature above 0"),
        ({"features": -1}, "features of at least 0"),
    ],
    ids=str,
)
def test_shares_that_are_none(settings, message):
    with pytest.raises(RunError, match=message):
        Distillation(**settings)


def test_a_teacher_of_other_classes_is_refused(task, supernet, tmp_path):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 100))
    recipe = replace(RECIPE, distillation=Distillation(external=0.5, teacher=teacher))
    with pytest.raises(RunError, match=r"in the shape of the subnets, \(16, 3\): got \(16, 100\)"):
        train(supernet, task, recipe, tmp_path)


def test_parts_that_there_are_none_of_are_refused(task, supernet, tmp_path):
    recipe = replace(RECIPE, distillation=Distillation(features=1.0, parts="layers.*"))
    with pytest.raises(
        RunError, match=r"must fit whole names of modules, such as .*: 'layers\.\*' fits none"
    ):
        train(supernet, task, recipe, tmp_path)


def test_an_export_teaches(task, supernet, tmp_path, monkeypatch):
    architecture = supernet.space.smallest()
    module = supernet.extract(architecture)
    folder = tmp_path / "export"
    json_form = supernet.space.to_json(architecture)
    given = Subnet(module, json_form, torch.zeros(2, 1, 8, 8))
    export_subnet(given, folder, formats=("safetensors",), cards=lambda checks: {})

    def gradients(teacher, name):
        distillation = Distillation(in_place=0.5, external=0.5, teacher=teacher)
        recipe = replace(RECIPE, distillation=distillation)
        return step_gradients(supernet, task, recipe, tmp_path / name, monkeypatch)

    assert_gradients(gradients(str(folder), "a"), gradients(module, "b"))
    alone = Experiment("a", task, supernet.space, hierarchical.build).alone(supernet.space.largest(), 0)
    distillation = Distillation(external=0.5, teacher=str(folder))
    recipe = replace(RECIPE, distillation=distillation, subnets=SinglePath(), epochs=1)
    assert train(alone, task, recipe, tmp_path / "alone") is alone  # whose own parts are of other classes
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"must be an export with architecture\.json .* cannot be loaded"):
        gradients(str(folder), "c")
    with pytest.raises(ExportError, match=r"cannot be loaded: there is no file"):
        gradients(tmp_path / "nowhere", "d")


def test_a_folder_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Distillation(in_place=0.0, external=0.3, teacher="exports/abc").teacher == str(
        tmp_path / "exports" / "abc"
    )
