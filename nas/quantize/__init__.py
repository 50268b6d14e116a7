"""Bit-widths: whole numbers for weights, simulated in float, and the bytes they save."""

from nas.quantize.paths import BitsOf, bits_by_path
from nas.quantize.weights import GROUP, Integers, fake_quantize, payload_bytes

__all__ = ["GROUP", "BitsOf", "Integers", "bits_by_path", "fake_quantize", "payload_bytes"]
