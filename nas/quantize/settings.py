"""How numbers become whole ones, fixed before a supernet is trained: it is what will be deployed."""

from __future__ import annotations

from dataclasses import dataclass

from nas.errors import SpaceError

CALIBRATED, DYNAMIC = "calibrated", "dynamic"


@dataclass(frozen=True)
class Quantization:
    """How activations of 8 bits get their range before weights of 8 bits; before weights of fewer, every
    `nas.layers.quantizers.GROUP` numbers of an input have a scale of their own, found when they come.

    Attributes:
        activations: "calibrated": one range per layer, the mean over calls of calibration; "dynamic": that of
            what comes together, found when it comes. ONNX Runtime runs both equally fast
            (`experiments/benchmarks/low_bits.py`), and only the first answers an input whatever comes
            beside it.
        images: inputs that will come together where the range is dynamic: the batch size of deployment.
        nested: whether weights of 2, 4 and 8 bits are the leading bits of the same whole numbers (Matryoshka
            quantization, Nair et al., 2025); weights of 8 bits have a scale per group then, too, and so have
            inputs of 8 bits before them.
        learned: whether scales of weights are learned (LSQ, Esser et al., 2020).

    Raises:
        SpaceError: another value.
    """

    activations: str = CALIBRATED
    images: int = 1
    nested: bool = False
    learned: bool = False

    def __post_init__(self) -> None:
        if self.activations not in (CALIBRATED, DYNAMIC):
            raise SpaceError(
                f"`quantization.activations` must be {CALIBRATED} or {DYNAMIC}: got {self.activations!r}."
            )
        if type(self.images) is not int or self.images < 1:
            raise SpaceError(
                f"`quantization.images` must be the batch size of deployment, 1 or more: got {self.images!r}."
            )
        if self.images > 1 and self.activations == CALIBRATED:
            raise SpaceError(
                f"`quantization.images` must be 1 where ranges are calibrated, since no input then depends "
                f"on those beside it: got {self.images}. Set quantization.activations={DYNAMIC}, or leave it "
                f"out."
            )
        if self.nested and self.learned:
            raise SpaceError(
                "`quantization.nested` and `quantization.learned` must not stand together: nested numbers "
                "share one scale, which each width would learn anew. Leave one out."
            )
