"""What two references answer that are in no package: asks them again, from a clone of their repository.

    git clone https://github.com/microsoft/CSWin-Transformer && git -C CSWin-Transformer checkout f111ae2
    python -m experiments.benchmarks.golden_answers cswin_tiny CSWin-Transformer
    git clone https://github.com/badripatro/SpectFormers && git -C SpectFormers checkout b6cf487
    python -m experiments.benchmarks.golden_answers spectformer_small SpectFormers

prints how far its answers are from the recorded ones; `--write` records them. This runs code of the clone, as
it is: read it first. What it imports and the installed packages no longer have is answered by `STAND_INS`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmarks.published_points import Golden, relative
from search_spaces.pretrained.libraries import prepare


class Rearranged(nn.Module):
    """Of einops: "b c h w -> b (h w) c", the one pattern that CSWin asks for."""

    def __init__(self, pattern: str, **sides: int) -> None:
        super().__init__()
        assert pattern == "b c h w -> b (h w) c"

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


STAND_INS: dict[str, dict[str, Any]] = {
    "einops.layers.torch": {"Rearrange": Rearranged},
    "numpy.lib.arraypad": {"pad": None},  # imported and not used
}


@dataclass(frozen=True)
class Source:
    """A model of a published repository: `file` at `commit`, and `model(module of that file, side)`."""

    repository: str
    commit: str
    file: str
    model: Callable[[Any, int], nn.Module]
    as_published: str


SOURCES = {
    "cswin_tiny": Source(
        "github.com/microsoft/CSWin-Transformer",
        "f111ae2",
        "models/cswin.py",
        lambda code, side: code.CSWin_64_12211_tiny_224(img_size=side),
        "CSWin_64_12211_tiny_224(img_size=side)",
    ),
    "spectformer_small": Source(
        "github.com/badripatro/SpectFormers",
        "b6cf487",
        "vanilla_architecture/spectformer.py",
        lambda code, side: code.SpectFormer(
            img_size=side,
            patch_size=16,
            embed_dim=384,
            depth=19,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        ),
        "SpectFormer(img_size=side, patch_size=16, embed_dim=384, depth=19, mlp_ratio=4, norm_layer="
        "LayerNorm(eps=1e-6)), which main_spectformer.py builds for --arch spectformer-s",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("clone", type=Path, help="folder of the repository, at its commit")
    parser.add_argument("--write", action="store_true", help="record the answers")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    source, model = SOURCES[asked.name], import_module(f"search_spaces.pretrained.{asked.name}")
    code = imported(asked.clone / source.file)
    references = {side: source.model(code, side) for side in (*model.SIDES, *getattr(model, "BUILT_FOR", ()))}
    new = Golden.of(references, made(asked.name, source))
    old = Golden.read(model.GOLDEN)
    print(f"parameters {new.parameters:,} (recorded {old.parameters:,}), MMACs {new.mmacs} ({old.mmacs})")
    print(f"names and shapes {'are' if new.shapes == old.shapes else 'ARE NOT'} those recorded")
    for side, answers in new.answers.items():
        if side not in old.answers:
            print(f"{side} × {side}: not recorded")
            continue
        apart = relative(torch.tensor(answers), torch.tensor(old.answers[side]))
        print(f"{side} × {side}: {apart:.1e} from the recorded answers, relative to the largest")
    if asked.write:
        new.write(model.GOLDEN)


def imported(file: Path) -> ModuleType:
    """The module of a file of a clone."""
    prepare()
    for name, contents in STAND_INS.items():
        _stand_in(name, contents)
    spec = importlib.util.spec_from_file_location(f"_published_{file.stem}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where decorators of timm look for it
    spec.loader.exec_module(module)
    return module


def _stand_in(name: str, contents: dict[str, Any]) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        for parent in (name.rsplit(".", i)[0] for i in range(name.count("."), -1, -1)):
            sys.modules.setdefault(parent, ModuleType(parent))
        vars(sys.modules[name]).update(contents)


def made(name: str, source: Source) -> str:
    """How golden answers came to be, for the file that holds them."""
    import timm

    return (
        f"{source.file} of {source.repository} at commit {source.commit}, run as it is beside timm "
        f"{timm.__version__} and torch {torch.__version__} on a CPU in float32: {source.as_published}, "
        f"with the weights of `randomised` on the images of `images(side)` "
        f"(experiments/benchmarks/published_points.py). "
        f"To repeat it: python -m experiments.benchmarks.golden_answers {name} CLONE"
    )


if __name__ == "__main__":
    main()
