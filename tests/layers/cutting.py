"""Cutting small modules out of large ones, and saying what the large one should have answered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.layout import Layout, cut


def layouts_of(module: nn.Module) -> dict[str, Layout]:
    declared = {}
    for prefix, inner in module.named_modules():
        for name, layout in (inner.layouts() if hasattr(inner, "layouts") else {}).items():
            declared[f"{prefix}.{name}" if prefix else name] = layout
    return {n: declared.get(n, Layout(tuple(p.shape))) for n, p in module.named_parameters()}


def cut_tensors(tensors: dict[str, Tensor], large: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    have, want = layouts_of(large), layouts_of(small)
    shapes = {n: tuple(p.shape) for n, p in small.named_parameters()}
    return {n: cut(n, tensors[n].reshape(have[n].shape), have[n], want[n], shapes[n]) for n in want}


def cut_module(large: nn.Module, small: nn.Module) -> nn.Module:
    """`small` with weights cut from `large`."""
    small.load_state_dict(cut_tensors(dict(large.named_parameters()), large, small), strict=False)
    return small.to(next(large.parameters(), torch.zeros(0, dtype=torch.double)).dtype).eval()


def kept_positions(large: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Per parameter of the large module, a mask of what the small one uses; found by cutting positions."""
    positions = {n: torch.arange(p.numel()).reshape(p.shape) for n, p in large.named_parameters()}
    kept = cut_tensors(positions, large, small)
    masks = {}
    for name, position in positions.items():
        mask = torch.zeros(position.numel(), dtype=torch.bool)
        mask[kept[name].flatten()] = True
        masks[name] = mask.reshape(position.shape)
    return masks


def zero_what_is_cut_away(large: nn.Module, small: nn.Module) -> nn.Module:
    """The large module as it should answer when only the small one's part of it counts: the rest is 0,
    norms look at the channels that are left, and the softmax is scaled for the dimension that is left."""
    masks = kept_positions(large, small)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            parameter.mul_(masks[name])
    inner = dict(small.named_modules())
    for name, module in list(large.named_modules()):
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            replace(large, name, MaskedNorm(module, masks[f"{name}.weight" if name else "weight"]))
        if isinstance(getattr(module, "scale", None), float):
            module.scale = inner[name].scale
    return large


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    if name:
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, module)
    else:
        root.forward = module.forward


class MaskedNorm(nn.Module):
    """Layer norm or RMS norm over the channels of a mask; gives 0 elsewhere."""

    def __init__(self, norm: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.norm, self.mask = norm, mask

    def forward(self, x: Tensor) -> Tensor:
        norm, y = self.norm, x[..., self.mask]
        if isinstance(norm, nn.LayerNorm):
            y = y - y.mean(-1, keepdim=True)
        y = y / (y.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight[self.mask]
        if getattr(norm, "bias", None) is not None:
            y = y + norm.bias[self.mask]
        out = torch.zeros_like(x)
        out[..., self.mask] = y
        return out


def randomise(module: nn.Module) -> nn.Module:
    """In double precision, in evaluation mode, with weights under which every part matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double().eval()


def maps(width: int, side: int = 8) -> Tensor:
    return torch.randn(2, side, side, width, generator=torch.Generator().manual_seed(1)).double()


# --- codes of roles ---------------------------------------------------------------------------------


def code(*parts: Tensor) -> Tensor:
    """One number per combination of small whole numbers, negative ones included."""
    total = torch.zeros((), dtype=torch.long)
    for part in parts:
        total = total * 1000 + part + 500
    return total


def grid(*lengths: int) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n) for n in lengths), indexing="ij")
