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
from .confident import Frechet, Hierarchy
from .credit import Credit
from .dependence import DependenceBound
from .drawn import DrawnConfidence, Moment
from .editing import Editing
from .filters import Spaced, UpstreamGate
from .gibbs import Gibbs
from .lookahead import Lookahead
from .order import Confidence, Determined, Entropy, HighEntropy, LeftToRight, Margin, Order, Uniform
from .path_planning import PathPlanning
from .predictor import Extrapolate, Predictor
from .ranked import Rule
from .remasking import Remasking
from .scored import Noisy, Scored, ScoredOrder
from .self_speculative import SelfSpeculative
from .speculative import Speculative
from .tempered import TemperedBound
from .testing import IndependenceTest
from .wino import Wino

__all__ = [
    "All",
    "Budget",
    "CarriedBound",
    "Cell",
    "Clock",
    "Confidence",
    "Credit",
    "DependenceBound",
    "Determined",
    "Dilated",
    "DrawnConfidence",
    "Editing",
    "Entropy",
    "EntropyBound",
    "Extrapolate",
    "Factor",
    "Frechet",
    "Gibbs",
    "Groups",
    "Hierarchy",
    "HighEntropy",
    "HittingTimes",
    "IndependenceTest",
    "LeftToRight",
    "Lookahead",
    "Margin",
    "MaskedFraction",
    "Moment",
    "Noisy",
    "One",
    "Order",
    "PathPlanning",
    "Predictor",
    "Remasking",
    "Rule",
    "Scored",
    "ScoredOrder",
    "SelfSpeculative",
    "Spaced",
    "Speculative",
    "Stable",
    "Steps",
    "TemperedBound",
    "Threshold",
    "TimeGrid",
    "TopK",
    "Uniform",
    "UpstreamGate",
    "View",
    "Wino",
    "ancestral",
    "entropy_bound",
    "extrapolated_first_hitting",
    "first_hitting",
    "parallel_first_hitting",
]
