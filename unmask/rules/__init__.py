"""Unmasking rules: clocks, orders, budgets and their compositions."""

from .budget import All, Budget, EntropyBound, Factor, One, Steps, Threshold, TopK, entropy_bound
from .clock import Cell, Clock, HittingTimes, MaskedFraction, TimeGrid, ancestral, first_hitting, parallel_first_hitting
from .drawn import Drawn, DrawnConfidence
from .order import Confidence, Entropy, LeftToRight, Margin, Order, Uniform
from .rule import Rule
from .view import View

__all__ = [
    "All",
    "Budget",
    "Cell",
    "Clock",
    "Confidence",
    "Drawn",
    "DrawnConfidence",
    "Entropy",
    "EntropyBound",
    "Factor",
    "HittingTimes",
    "LeftToRight",
    "Margin",
    "MaskedFraction",
    "One",
    "Order",
    "Rule",
    "Steps",
    "Threshold",
    "TimeGrid",
    "TopK",
    "Uniform",
    "View",
    "ancestral",
    "entropy_bound",
    "first_hitting",
    "parallel_first_hitting",
]
