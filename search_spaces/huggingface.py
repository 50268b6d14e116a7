"""Subnets as `transformers` models: importing this registers those of `hierarchical` with its Auto classes.

    import search_spaces.huggingface
    from transformers import AutoModelForImageClassification
    model = AutoModelForImageClassification.from_pretrained("runs/digits/exports/ID/huggingface")

Those of a builder of your own are known once you say so, in any process that loads them:

    from search_spaces.huggingface import load, register
    model = load("runs/mine/exports/ID/huggingface", ViT, [Architecture])
    register("architecture", ViT, [Architecture])  # for Auto classes

A config holds an architecture as JSON and bits by name; nothing else of a folder is looked up, let alone run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nas.architecture import from_json, reachable_from, to_json
from nas.errors import ExportError, NasError, first_line
from nas.export.packed import header_of, require_sane, with_header
from nas.layers.catalogue import FAMILIES, members
from nas.quantize import in_floats
from nas.tasks import axis_of_classes
from search_spaces.hierarchical import HierarchicalTransformer, build
from search_spaces.pretrained.libraries import prepare

prepare()
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import logging

PREFIX = "nas-"
MOST_CLASSES = 1_000_000
"""A config names each of them."""
WEIGHTS, ONE_FILE = "model.safetensors", "100TB"


class SubnetConfig(PreTrainedConfig):
    """An architecture and its bits.

    Args:
        architecture: as JSON.
        bits: of weights and inputs, as `nas.export.packed` notes them; None: 32 everywhere.
    """

    def __init__(
        self, architecture: Mapping[str, Any] | None = None, bits: str | None = None, **others: Any
    ) -> None:
        if architecture is not None and not isinstance(architecture, Mapping):
            raise ExportError(f"The config of a model must hold an architecture: got {architecture!r}.")
        own = (architecture or {}).get("classes")  # a field of that name may be of another kind
        for classes in (own if isinstance(own, int) else 1, others.get("num_labels", 1)):
            if not isinstance(classes, int) or not 0 < classes <= MOST_CLASSES:
                raise ExportError(
                    f"`classes` in a config must be a number from 1 to {MOST_CLASSES:,}: got {classes!r}."
                )
        if isinstance(own, int) and not others.keys() & {"num_labels", "id2label"}:
            others["num_labels"] = own
        self.architecture = dict(architecture) if architecture else None
        self.bits = bits
        super().__init__(**others)


class SubnetModel(PreTrainedModel):
    """A subnet at its bits, whose weights are floats.

    Attributes:
        build: of an architecture, its module, which answers one tensor of inputs with one of logits.
        classes: which an architecture may be made of, by name; the root among them.

    Raises:
        ExportError: a config that holds none; files that lack weights, or hold some that are none.
    """

    build: ClassVar[Callable[[Any], nn.Module]]
    classes: ClassVar[Mapping[str, type]]
    config_class = SubnetConfig
    base_model_prefix = "model"

    def __init__(self, config: SubnetConfig) -> None:
        super().__init__(config)
        self.model = self._built(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **named: Any) -> Any:
        """As of every model of `transformers`; but what a file lacks is an error here, and not drawn at
        random."""
        told = named.pop("output_loading_info", False)
        named.setdefault("dtype", torch.float32)  # whatever a config says: what it answered was of floats
        model, info = super().from_pretrained(path, *arguments, output_loading_info=True, **named)
        _require_whole(model, info, path)
        _fill_buffers(model.model, cls._built(model.config))
        return (model, info) if told else model

    @classmethod
    def _built(cls, config: SubnetConfig) -> nn.Module:
        try:
            architecture = from_json(config.architecture, cls.classes)
        except NasError as error:
            raise ExportError(f"The config of a model must hold an architecture: {error}") from error
        cls._require_root(architecture)
        try:
            return with_header(cls.build(architecture), config.bits)
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"The config of a model must hold bits as they were noted, but {error}."
            ) from error

    @classmethod
    def _require_root(cls, architecture: Any) -> None:
        """Raises ExportError for a part of an architecture, or none."""

    def _init_weights(self, module: nn.Module) -> None:
        """The builder has done it."""

    def _answer(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits = self.model(inputs)
        if labels is None:
            return None, logits
        axis = axis_of_classes(tuple(logits.shape), labels)
        if axis is None:
            return nn.functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype)), logits
        if labels.ndim == logits.ndim:  # masks (B, 1, H, W)
            labels = labels.squeeze(axis)
        return nn.functional.cross_entropy(logits.movedim(axis, 1), labels), logits


LAWS = {
    "missing_keys": "is missing",
    "mismatched_keys": "has another shape",
    "unexpected_keys": "is of no part of it",
}


def _require_whole(model: nn.Module, info: Mapping[str, Any], path: Any) -> None:
    """Raises ExportError where `transformers` drew weights, left some out, or they are no numbers."""
    for kind, law in LAWS.items():
        if found := sorted(map(str, info[kind])):
            raise ExportError(f"{path} must hold all weights of its model, but `{found[0]}` {law}.")
    try:
        require_sane(model)
    except ValueError as error:
        raise ExportError(f"{path} must hold weights, but {error}.") from error


def _fill_buffers(module: nn.Module, fresh: nn.Module) -> None:
    """What no file holds, as the builder makes it: `transformers` builds modules without numbers."""
    kept, own = module.state_dict().keys(), dict(module.named_buffers())
    for name, buffer in fresh.named_buffers():
        if name not in kept:
            own[name].data.copy_(buffer)


class OfImages(SubnetModel):
    """Of images (B, channels, height, width)."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits (B, …, classes), and the loss, given labels (B, …)."""
        loss, logits = self._answer(pixel_values, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class OfTokens(SubnetModel):
    """Of token ids (B, N)."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Logits (B, …, classes), and the loss, given labels (B, …)."""
        loss, logits = self._answer(input_ids, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


REGISTERED: dict[str, type[SubnetModel]] = {}
"""By the type that configs name."""


def register(
    name: str,
    build: Callable[[Any], nn.Module],
    classes: Iterable[type] | Mapping[str, type],
    *,
    tokens: bool = False,
) -> type[SubnetModel]:
    """Makes the subnets of a builder known to the Auto classes, as models of the type ``nas-NAME``.

    Args:
        build: as of an experiment; modules answer one tensor with one.
        classes: the root of architectures, such as ``[ViT]``, and what no annotation of its fields names; or
            `space.classes`.
        tokens: whether inputs are token ids (B, N), and no images (B, channels, height, width).

    Example:
        >>> register("vit", ViT, [Architecture])
    """
    known = dict(classes) if isinstance(classes, Mapping) else reachable_from(classes)
    config = type(
        "SubnetConfig", (SubnetConfig,), {"model_type": f"{PREFIX}{name}", "__init__": SubnetConfig.__init__}
    )
    base = OfTokens if tokens else OfImages
    parts = {"config_class": config, "build": staticmethod(build), "classes": known}
    return _made_known(type(base.__name__, (base,), parts))


def _made_known(model: type[SubnetModel]) -> type[SubnetModel]:
    config = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    task = (
        AutoModelForSequenceClassification if issubclass(model, OfTokens) else AutoModelForImageClassification
    )
    for auto in (AutoModel, task):
        auto.register(config, model, exist_ok=True)
    REGISTERED[config.model_type] = model
    return model


class HierarchicalConfig(SubnetConfig):
    """An architecture of `search_spaces.hierarchical`."""

    model_type = f"{PREFIX}hierarchical"
    __init__ = SubnetConfig.__init__  # transformers writes one for each class that has none


class HierarchicalForImageClassification(OfImages):
    """Any architecture of `search_spaces.hierarchical`."""

    config_class = HierarchicalConfig
    build: ClassVar[Callable[[Any], nn.Module]] = staticmethod(build)
    classes = reachable_from([HierarchicalTransformer, *(c for family in FAMILIES for c in members(family))])

    @classmethod
    def _require_root(cls, architecture: Any) -> None:
        if not isinstance(architecture, HierarchicalTransformer):
            raise ExportError(
                f"The config of a model must hold a HierarchicalTransformer: got {to_json(architecture)!r}."
            )


_made_known(HierarchicalForImageClassification)


# --- folders --------------------------------------------------------------------------------------


def save(
    module: nn.Module,
    architecture: Mapping[str, Any],
    folder: Path,
    example: Tensor,
    build: Callable[[Any], nn.Module] | None = None,
    classes: Mapping[str, type] | None = None,
) -> None:
    """Writes a folder that the Auto classes read.

    A model of `transformers`, or what merely wraps one, is written as its own class where that fits; all else
    as one of `REGISTERED`, where its builder is registered when it is not yet, under the name of its
    architectures.

    Args:
        module: a subnet, its weights rounded, its ranges calibrated.
        architecture: its JSON.
        example: inputs (B, …).
        build, classes: as of `load_subnet`.

    Raises:
        ExportError: it has no builder that makes it again.
    """
    logging.disable_progress_bar()  # ours are the only bars
    stock = _stock(module)
    if stock is not None and in_floats(module) is module:
        stock.save_pretrained(folder, max_shard_size=ONE_FILE)
        if build is None or _fits(stock, folder):
            return
    of = next((model for model in REGISTERED.values() if model.build == build), None)
    try:
        if of is None and build and classes:
            name = str(architecture["type"]).lower()
            of = register(name, build, classes, tokens=not example.is_floating_point())
        if of is None and architecture.get("type") != HierarchicalTransformer.__name__:
            raise ExportError("of an unknown builder")
        of = of or HierarchicalForImageClassification
        with torch.inference_mode():
            answer = module(example)
        labels = answer.shape[-1] if answer.ndim > 1 else 1
        model = of(of.config_class(architecture, header_of(module), num_labels=labels))
        model.model.load_state_dict(module.state_dict())
    except (NasError, RuntimeError) as error:
        raise ExportError(
            f"A Hugging Face folder must hold what its builder makes again, or a model of transformers: got "
            f"{type(module).__name__} ({first_line(error)}). Leave huggingface out with --format."
        ) from error
    model.eval().save_pretrained(folder, max_shard_size=ONE_FILE)


def _fits(stock: PreTrainedModel, folder: Path) -> bool:
    """Whether its class reads it again: layers may differ where a config has one number for all."""
    try:
        type(stock).from_pretrained(folder, local_files_only=True)
    except RuntimeError:
        return False
    return True


def load(
    folder: Path | str,
    build: Callable[[Any], nn.Module] | None = None,
    classes: Iterable[type] | Mapping[str, type] = (),
) -> PreTrainedModel:
    """The model that a folder holds, by the class that wrote it, in evaluation mode.

    Args:
        build, classes: as of `register`, where the folder is of a builder that was not registered.

    Raises:
        ExportError: the folder is of another builder, or holds no model.
    """
    path = Path(folder) / "config.json"
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no file config.json")
        config = json.loads(path.read_text("utf-8"))
        kind, name = str(config["model_type"]), str(config["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{folder} must hold a model of transformers, but: {first_line(error)}") from error
    known = REGISTERED.get(kind)
    if build and not kind.startswith(PREFIX):
        raise ExportError(
            f"{folder} must hold a model of a builder of yours, but holds {name} of the type {kind}. Load it "
            f"without `build` if that is what you expect."
        )
    if build and kind.startswith(PREFIX) and (known is None or known.build != build):  # names may be shared
        register(kind.removeprefix(PREFIX), build, classes, tokens=name == OfTokens.__name__)
    of: Any = REGISTERED.get(kind) or getattr(transformers, name, None)
    if not (isinstance(of, type) and issubclass(of, PreTrainedModel)):
        raise ExportError(
            f"{folder} must hold a model that is known here: got {name} of the type {kind}. Load it with the "
            f"builder that made it, `load(folder, build, classes)`."
        )
    model: PreTrainedModel
    told: dict[str, Any]
    try:
        if not (Path(folder) / WEIGHTS).is_file():  # an index of several could name files anywhere
            raise FileNotFoundError(f"it has no {WEIGHTS}")
        model, told = of.from_pretrained(  # type: ignore[attr-defined]
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except ExportError:
        raise
    except RuntimeError as error:
        raise ExportError(
            f"{folder} must hold weights of the sizes that its config says, but {of.__name__} found others. "
            f"(Classes of transformers have one number for all layers: where these differ, leave huggingface "
            f"out with --format.)"
        ) from error
    except Exception as error:  # libraries raise what they like
        raise ExportError(f"{folder} must hold a model of transformers, but: {first_line(error)}") from error
    _require_whole(model, told, folder)
    return model.eval()


def _stock(module: nn.Module) -> PreTrainedModel | None:
    """The model of `transformers` that a module is, or wraps."""
    inner = [module] if isinstance(module, PreTrainedModel) else list(module.children())
    return inner[0] if len(inner) == 1 and isinstance(inner[0], PreTrainedModel) else None
