"""What there is to choose from: read from the files, so that a new class in a new file is a choice.

python -m nas.layers.catalogue > docs/choices.md
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from importlib import import_module
from pkgutil import walk_packages
from typing import TypeVar

import nas.layers
from nas.layers.attention import AttentionPosition
from nas.layers.choice import ChannelMixer, Choice, Downsample, Mixer, Norm, Position, Stem
from nas.layers.fields import genes_of

FAMILIES: dict[type[Choice], str] = {
    Mixer: "Mixers",
    ChannelMixer: "Channel mixers",
    Stem: "Stems",
    Downsample: "Downsampling",
    Position: "Positions on the map",
    AttentionPosition: "Positions inside attention",
    Norm: "Norms",
}
T = TypeVar("T", bound=Choice)


def members(family: type[T]) -> list[type[T]]:
    """The classes of a family that can be chosen, by name, from all files of `nas.layers`."""
    for module in walk_packages(nas.layers.__path__, "nas.layers."):
        import_module(module.name)
    found: list[type[T]] = []
    todo = [family]
    while todo:
        below = todo.pop().__subclasses__()
        todo += below
        found += [c for c in below if not c.__subclasses__() and c.__module__.startswith("nas.layers.")]
    return sorted(set(found), key=lambda c: c.__name__)


def page() -> str:
    """The list of choices, as Markdown."""
    parts = [HEAD]
    for family, title in FAMILIES.items():
        rows = [_row(choice) for choice in members(family)]
        parts.append(
            f"## {title}\n\n| choice | what it is | genes (values by default) | options |\n|---|---|---|---|"
        )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


HEAD = """# Choices

Written by `python -m nas.layers.catalogue > docs/choices.md` from the classes themselves.

Genes are what a space may vary per block or per stage (`heads=oneof(1, 2, 4)`), with the values that
tests and default spaces use; other values may stand in an architecture, kernels being odd.
Options are fields that are usually fixed. Mixers, channel mixers, stems and downsampling have `bits` besides.
[Spaces](spaces.md) shows how to use them.

What is not there: `placement="sub"` for parts that have no last linear layer of their own to put a norm
before (they are refused); AFT-conv's normalisation of its biases over the kernel. Stochastic depth, dropout
and masks belong to training. Exports fold RepBN and BatchNorm into the products of floats that read them.
"""


def _row(choice: type[Choice]) -> str:
    genes = genes_of(choice)
    varied = ", ".join(f"`{n}` ({', '.join(map(str, v))})" for n, v in genes.items())
    others = [f for f in fields(choice) if f.name not in genes and f.name != "bits"]
    options = ", ".join(f"`{f.name}`" if f.default is MISSING else f"`{f.name}={f.default}`" for f in others)
    text = inspect.cleandoc(choice.__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return f"| `{choice.__name__}` | {text} | {varied or '–'} | {options or '–'} |"


if __name__ == "__main__":
    print(page(), end="")
