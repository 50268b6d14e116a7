"""Subnets as `transformers` models: importing this registers them with its Auto classes.

    import search_spaces.huggingface
    from transformers import AutoModelForImageClassification
    model = AutoModelForImageClassification.from_pretrained("runs/digits/exports/ID/huggingface")

A config holds an architecture as JSON and bits by name, and the builder is that of `hierarchical`; nothing
else of a folder is looked up, let alone run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas.architecture import from_json, reachable_from, to_json
from nas.errors import ExportError, NasError
from nas.export.packed import header_of, require_sane, with_header
from nas.quantize import in_floats
from nas.layers.catalogue import FAMILIES, members
from search_spaces.hierarchical import HierarchicalTransformer, build
from search_spaces.pretrained.libraries import prepare

prepare()
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import logging

MOST_CLASSES = 1_000_000
"""A config names each of them."""
CLASSES = reachable_from([HierarchicalTransformer, *(c for family in FAMILIES for c in members(family))])
"""All that an architecture may be made of, by name."""


class HierarchicalConfig(PreTrainedConfig):
    """An architecture of `search_spaces.hierarchical`.

    Args:
        architecture: as JSON.
        bits: of weights and inputs, as `nas.export.packed` notes them; None: 32 everywhere.
    """

    model_type = "nas-hierarchical"

    def __init__(
        self, architecture: Mapping[str, Any] | None = None, bits: str | None = None, **others: Any
    ) -> None:
        if architecture is not None and not isinstance(architecture, Mapping):
            raise ExportError(f"The config of a model must hold an architecture: got {architecture!r}.")
        classes = (architecture or {}).get("classes", 2)
        if not isinstance(classes, int) or not 0 < classes <= MOST_CLASSES:
            raise ExportError(
                f"`classes` in a config must be a number from 1 to {MOST_CLASSES:,}: got {classes!r}."
            )
        self.architecture = dict(architecture) if architecture else None
        self.bits = bits
        if architecture:
            others.setdefault("num_labels", classes)
        super().__init__(**others)


class HierarchicalForImageClassification(PreTrainedModel):
    """Any architecture of `search_spaces.hierarchical`, at its bits, whose weights are floats.

    Raises:
        ExportError: a config that holds none; files that lack weights, or hold some that are none.
    """

    config_class = HierarchicalConfig
    main_input_name = "pixel_values"
    base_model_prefix = "model"

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config)
        self.model = _built(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **named: Any) -> Any:
        """As of every model of `transformers`; but what a file lacks is an error here, and not drawn at
        random."""
        told = named.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *arguments, output_loading_info=True, **named)
        for kind, law in (("missing_keys", "is missing"), ("mismatched_keys", "has another shape")):
            if found := sorted(map(str, info[kind])):
                raise ExportError(
                    f"{path} must hold the weights of its architecture, but `{found[0]}` {law}."
                )
        try:
            require_sane(model)
        except ValueError as error:
            raise ExportError(f"{path} must hold weights, but {error}.") from error
        return (model, info) if told else model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits (B, classes) of images (B, channels, height, width), and the loss, given labels (B,)."""
        logits = self.model(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """The builder has done it."""


def save(module: nn.Module, architecture: Mapping[str, Any], folder: Path) -> None:
    """Writes a folder that the Auto classes read.

    A model of `transformers`, or what merely wraps one, is written as its own class.

    Args:
        module: a subnet, its weights rounded, its ranges calibrated.
        architecture: its JSON.

    Raises:
        ExportError: it is of another builder, or its class has no such sizes.
    """
    logging.disable_progress_bar()  # ours are the only bars
    if (stock := _stock(module)) is not None:
        if in_floats(module) is not module:
            raise ExportError(
                f"A class of transformers must fit, but {type(stock).__name__} takes inputs of layers as "
                f"they are, and this subnet rounds some to 8 bits. Leave huggingface out with --format."
            )
        stock.save_pretrained(folder)
        return
    try:
        model = HierarchicalForImageClassification(HierarchicalConfig(architecture, header_of(module)))
        model.model.load_state_dict(module.state_dict())
    except (NasError, RuntimeError) as error:
        raise ExportError(
            f"A Hugging Face folder must hold an architecture of search_spaces.hierarchical or a model of "
            f"transformers: got {type(module).__name__} ({str(error).splitlines()[0]}). Leave huggingface "
            f"out with --format."
        ) from error
    model.eval().save_pretrained(folder)


def load(folder: Path, module: nn.Module) -> nn.Module:
    """What the folder holds, in evaluation mode; for a model of `transformers`, by its own class."""
    stock = _stock(module)
    of = AutoModelForImageClassification if stock is None else type(stock)
    try:
        model: nn.Module = of.from_pretrained(folder, local_files_only=True)
    except RuntimeError as error:
        raise ExportError(
            f"A class of transformers must fit, but {of.__name__} has no such sizes: it has a number for all "
            f"layers, where these differ. Leave huggingface out with --format."
        ) from error
    return model.eval()


def _stock(module: nn.Module) -> PreTrainedModel | None:
    """The model of `transformers` that a module is, or wraps."""
    inner = [module] if isinstance(module, PreTrainedModel) else list(module.children())
    return inner[0] if len(inner) == 1 and isinstance(inner[0], PreTrainedModel) else None


def _built(config: HierarchicalConfig) -> nn.Module:
    try:
        architecture = from_json(config.architecture, CLASSES)
    except NasError as error:
        raise ExportError(f"The config of a model must hold an architecture: {error}") from error
    if not isinstance(architecture, HierarchicalTransformer):
        raise ExportError(
            f"The config of a model must hold a HierarchicalTransformer: got {to_json(architecture)!r}."
        )
    try:
        return with_header(build(architecture), config.bits)
    except (TypeError, ValueError) as error:
        raise ExportError(f"The config of a model must hold bits as they were noted, but {error}.") from error


AutoConfig.register(HierarchicalConfig.model_type, HierarchicalConfig)
for auto in (AutoModel, AutoModelForImageClassification):
    auto.register(HierarchicalConfig, HierarchicalForImageClassification)
