"""Spaces: a user's dataclass with holes, and everything that can be asked of it."""

from nas.space.additive import Additive
from nas.space.genes import FIRST, Gene
from nas.space.holes import Between, OneOf, Repeat, Tied, between, is_hole, oneof, repeat, tied
from nas.space.space import Constraint, Space
from nas.space.views import Context, materialise
from nas.space.within import EmptyRange, Within

__all__ = [
    "FIRST",
    "Additive",
    "Between",
    "Constraint",
    "Context",
    "EmptyRange",
    "Gene",
    "OneOf",
    "Repeat",
    "Space",
    "Tied",
    "Within",
    "between",
    "is_hole",
    "materialise",
    "oneof",
    "repeat",
    "tied",
]
