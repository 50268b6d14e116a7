"""Searchers: what to evaluate next. All follow one protocol and none imports torch."""

from nas.searchers.base import Searcher
from nas.searchers.evolution import NSGA2
from nas.searchers.random import RandomSearch
from nas.searchers.tpe import TPE

__all__ = ["NSGA2", "TPE", "RandomSearch", "Searcher"]
