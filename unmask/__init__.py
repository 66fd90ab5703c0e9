"""Samplers for masked diffusion models, proven to draw from the distribution they claim."""

from . import blocks, categorical, errors, rules, schedule, streams
from .denoiser import Denoiser, FullDenoiser, NetworkDenoiser, Query
from .likelihood import Likelihood, nelbo
from .result import Event, Result, StepInfo
from .rules import (
    All,
    Confidence,
    Entropy,
    EntropyBound,
    Factor,
    HittingTimes,
    LeftToRight,
    Margin,
    MaskedFraction,
    One,
    Rule,
    Steps,
    Threshold,
    TimeGrid,
    TopK,
    Uniform,
    ancestral,
    first_hitting,
    parallel_first_hitting,
)
from .sampler import Plan, Sampler, State, sample
from .streams import derive

__version__ = "0.1.0"

__all__ = [
    "All",
    "Confidence",
    "Denoiser",
    "Entropy",
    "EntropyBound",
    "Event",
    "Factor",
    "FullDenoiser",
    "HittingTimes",
    "LeftToRight",
    "Likelihood",
    "Margin",
    "MaskedFraction",
    "NetworkDenoiser",
    "One",
    "Plan",
    "Query",
    "Result",
    "Rule",
    "Sampler",
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
    "derive",
    "errors",
    "first_hitting",
    "nelbo",
    "parallel_first_hitting",
    "rules",
    "sample",
    "schedule",
    "streams",
]
