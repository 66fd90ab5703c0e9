"""Samplers for masked diffusion models, proven to draw from the distribution they claim."""

from . import blocks, categorical, errors, rules, streams
from .denoiser import Denoiser, FullDenoiser, NetworkDenoiser, Query
from .result import Event, Result, StepInfo
from .rules import (
    All,
    Confidence,
    Entropy,
    EntropyBound,
    LeftToRight,
    Margin,
    One,
    Rule,
    Steps,
    Threshold,
    TopK,
    Uniform,
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
    "FullDenoiser",
    "LeftToRight",
    "Margin",
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
    "TopK",
    "Uniform",
    "__version__",
    "blocks",
    "categorical",
    "derive",
    "errors",
    "rules",
    "sample",
    "streams",
]
