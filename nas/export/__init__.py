"""Exports: a subnet as files that run without `nas`."""

from nas.export.model_card import card
from nas.export.subnet import FORMATS, TOLERANCE, export_subnet

__all__ = ["FORMATS", "TOLERANCE", "card", "export_subnet"]
