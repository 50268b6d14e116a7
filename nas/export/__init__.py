"""Exports: a subnet as files that run without `nas`."""

from nas.export.checks import Check, Evidence
from nas.export.formats import DEFAULT, FORMATS, Subnet, format_of
from nas.export.model_card import cards
from nas.export.subnet import export_subnet

__all__ = ["DEFAULT", "FORMATS", "Check", "Evidence", "Subnet", "cards", "export_subnet", "format_of"]
