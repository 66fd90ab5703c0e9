"""Samplers for masked diffusion models, proven to draw from the distribution they claim."""

from . import errors, rules, schedule
from .denoiser import Denoiser, FullDenoiser, NetworkDenoiser, Query
from .draws import categorical, streams
from .draws.streams import derive
from .likelihood.nelbo import Likelihood, chain_log_likelihood, nelbo
from .models.registry import load
from .rules import (
    All,
    CarriedBound,
    Confidence,
    DependenceBound,
    Determined,
    Entropy,
    EntropyBound,
    Extrapolate,
    Factor,
    HittingTimes,
    LeftToRight,
    Margin,
    MaskedFraction,
    Noisy,
    One,
    Rule,
    Speculative,
    Stable,
    Steps,
    Threshold,
    TimeGrid,
    TopK,
    Uniform,
    ancestral,
    extrapolated_first_hitting,
    first_hitting,
    parallel_first_hitting,
)
from .rules.usual import default_rule
from .sampling import blocks
from .sampling.loop import Sampler
from .sampling.result import Event, Result, StepInfo
from .sampling.sample import sample
from .sampling.state import State

__version__ = "0.1.0"

__all__ = [
    "All",
    "CarriedBound",
    "Confidence",
    "Denoiser",
    "DependenceBound",
    "Determined",
    "Entropy",
    "EntropyBound",
    "Event",
    "Extrapolate",
    "Factor",
    "FullDenoiser",
    "HittingTimes",
    "LeftToRight",
    "Likelihood",
    "Margin",
    "MaskedFraction",
    "NetworkDenoiser",
    "Noisy",
    "One",
    "Query",
    "Result",
    "Rule",
    "Sampler",
    "Speculative",
    "Stable",
    "State",
    "StepInfo",
    "Steps",
    "Threshold",
    "TimeGrid",
    "TopK",
    "Uniform",
    "__version__",
    "ancestral",
    "blocks",
    "categorical",
    "chain_log_likelihood",
    "default_rule",
    "derive",
    "errors",
    "extrapolated_first_hitting",
    "first_hitting",
    "load",
    "nelbo",
    "parallel_first_hitting",
    "rules",
    "sample",
    "schedule",
    "streams",
]
