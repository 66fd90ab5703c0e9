"""Unmasking rules: orders, budgets and their compositions."""

from .budget import All, Budget, EntropyBound, One, Steps, Threshold, TopK, entropy_bound
from .order import Confidence, Entropy, LeftToRight, Margin, Order, Uniform
from .rule import Rule
from .view import View

__all__ = [
    "All",
    "Budget",
    "Confidence",
    "Entropy",
    "EntropyBound",
    "LeftToRight",
    "Margin",
    "One",
    "Order",
    "Rule",
    "Steps",
    "Threshold",
    "TopK",
    "Uniform",
    "View",
    "entropy_bound",
]
