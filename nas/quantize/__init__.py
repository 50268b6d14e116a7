"""Bit-widths: whole numbers for weights and activations, simulated in float, and the bytes they save."""

from nas.quantize.modules import (
    BLOCKS,
    INTEGER,
    INTEGER_BLOCKS,
    AtBits,
    at_bits,
    in_floats,
    kernel_of,
    stored_bits,
    with_replaced,
    without_bits,
)
from nas.quantize.paths import FULL, BitsOf, bits_by_path, of_parameter
from nas.quantize.settings import CALIBRATED, DYNAMIC, Quantization
from nas.quantize.weights import GROUP, Integers, fake_quantize, payload_bytes

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
    "at_bits",
    "bits_by_path",
    "fake_quantize",
    "in_floats",
    "kernel_of",
    "of_parameter",
    "payload_bytes",
    "stored_bits",
    "with_replaced",
    "without_bits",
]
