"""Unmasking rules: clocks, orders, budgets and their compositions."""

from ..sampling.view import View
from .blind import Dilated, Groups
from .budget import All, Budget, CarriedBound, EntropyBound, Factor, One, Stable, Steps, Threshold, TopK, entropy_bound
from .clock import (
    Cell,
    Clock,
    HittingTimes,
    MaskedFraction,
    TimeGrid,
    ancestral,
    extrapolated_first_hitting,
    first_hitting,
    parallel_first_hitting,
)
from .dependence import DependenceBound
from .drawn import DrawnConfidence, Moment
from .order import Confidence, Determined, Entropy, HighEntropy, LeftToRight, Margin, Order, Uniform
from .predictor import Extrapolate, Predictor
from .ranked import Rule
from .scored import Noisy, Scored, ScoredOrder
from .speculative import Speculative
from .testing import IndependenceTest

__all__ = [
    "All",
    "Budget",
    "CarriedBound",
    "Cell",
    "Clock",
    "Confidence",
    "DependenceBound",
    "Determined",
    "Dilated",
    "DrawnConfidence",
    "Entropy",
    "EntropyBound",
    "Extrapolate",
    "Factor",
    "Groups",
    "HighEntropy",
    "HittingTimes",
    "IndependenceTest",
    "LeftToRight",
    "Margin",
    "MaskedFraction",
    "Moment",
    "Noisy",
    "One",
    "Order",
    "Predictor",
    "Rule",
    "Scored",
    "ScoredOrder",
    "Speculative",
    "Stable",
    "Steps",
    "Threshold",
    "TimeGrid",
    "TopK",
    "Uniform",
    "View",
    "ancestral",
    "entropy_bound",
    "extrapolated_first_hitting",
    "first_hitting",
    "parallel_first_hitting",
]
