"""Bit-widths: whole numbers for weights and activations, simulated in float, and the bytes they save."""

from nas.quantize.modules import (
    BLOCKS,
    INTEGER,
    INTEGER_BLOCKS,
    AtBits,
    Stored,
    at_bits,
    in_floats,
    kernel_of,
    note_scales,
    step_name,
    stored,
    stored_bits,
    weight_of_step,
    with_replaced,
    without_bits,
)
from nas.quantize.paths import FULL, BitsOf, bits_by_path, of_parameter
from nas.quantize.settings import CALIBRATED, DYNAMIC, Quantization
from nas.quantize.weights import GROUP, Integers, fake_quantize, payload_bytes, scales_of

__all__ = [
    "BLOCKS",
    "CALIBRATED",
    "DYNAMIC",
    "FULL",
    "GROUP",
    "INTEGER",
    "INTEGER_BLOCKS",
    "AtBits",
    "BitsOf",
    "Integers",
    "Quantization",
    "Stored",
    "at_bits",
    "bits_by_path",
    "fake_quantize",
    "in_floats",
    "kernel_of",
    "note_scales",
    "of_parameter",
    "payload_bytes",
    "scales_of",
    "step_name",
    "stored",
    "stored_bits",
    "weight_of_step",
    "with_replaced",
    "without_bits",
]
