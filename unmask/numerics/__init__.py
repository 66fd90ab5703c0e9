"""Measures what a categorical draw by Gumbel noise really draws: exact laws, ceilings, effective temperatures.

`argmax(log π + g)` is a draw from π only if the noise `g` is unbounded. Noise that is computed from a uniform of finite
precision has an upper bound, its ceiling, and a class whose probability is far below `e^-ceiling` is drawn too rarely.
Nothing here is used for sampling: the package measures commonly used draws, and its own
(`unmask.draws.categorical.draw`), on the machine that it runs on.

References:
    Zheng, Chen, Mao, Liu, Zhu, Zhang (2024), arXiv:2409.02908, section 4 and appendix: truncated Gumbel noise.
"""

from .ancestral import AncestralCheck, UnigramTruth, ancestral_entropy_check, tail_hmm
from .draws import (
    DTYPES,
    FORMS,
    RareRace,
    ceiling,
    race_exponential,
    race_multinomial,
    race_rand,
    race_unmask,
    uniform_bits,
)
from .laws import (
    ancestral_step,
    ancestral_step_temperature,
    binomial_pvalue,
    effective_temperature,
    entropy,
    lattice_gumbel_law,
    truncated_gumbel_law,
)

__all__ = [
    "DTYPES",
    "FORMS",
    "AncestralCheck",
    "RareRace",
    "UnigramTruth",
    "ancestral_entropy_check",
    "ancestral_step",
    "ancestral_step_temperature",
    "binomial_pvalue",
    "ceiling",
    "effective_temperature",
    "entropy",
    "lattice_gumbel_law",
    "race_exponential",
    "race_multinomial",
    "race_rand",
    "race_unmask",
    "tail_hmm",
    "truncated_gumbel_law",
    "uniform_bits",
]
