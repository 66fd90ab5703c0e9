"""What docs/frontier.md sweeps: rules at their settings, and the oracles that they are run on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from unmask import (
    CarriedBound,
    Confidence,
    Entropy,
    EntropyBound,
    Factor,
    LeftToRight,
    Margin,
    Noisy,
    Rule,
    Steps,
    Threshold,
    TopK,
    Uniform,
)
from unmask.dependence.calibrate import oracle_profile
from unmask.oracles import (
    MarkovDenoiser,
    Oracle,
    PerturbedDenoiser,
    TableDenoiser,
    random_hmm,
    random_markov,
    random_table,
)
from unmask.rules import (
    Credit,
    DependenceBound,
    DrawnConfidence,
    Editing,
    Frechet,
    Gibbs,
    Hierarchy,
    Moment,
    PathPlanning,
    Remasking,
    Spaced,
    TemperedBound,
    UpstreamGate,
    Wino,
)
from unmask.rules.usual import default_rule
from unmask.sampling.conversation import AnyRule

LENGTH = 5
GAMMAS = (0.0, *(10 ** (e / 4) for e in range(-10, 4)), math.inf)
EPSILONS = (0.0, *(10 ** (e / 4) for e in range(-8, 6)), math.inf)
BASE = "EB, entropy"

FAMILIES: dict[str, list[Rule]] = {
    BASE: [Rule(Entropy(), EntropyBound(g)) for g in GAMMAS],
    "EB, confidence": [Rule(Confidence(), EntropyBound(g)) for g in GAMMAS],
    "EB, margin": [Rule(Margin(), EntropyBound(g)) for g in GAMMAS],
    "EB, left to right": [Rule(LeftToRight(), EntropyBound(g)) for g in GAMMAS],
    "total, paced by masks": [Rule(Entropy(), CarriedBound(e)) for e in EPSILONS],
    "total, cap 1/2": [Rule(Entropy(), CarriedBound(e, 0.5)) for e in EPSILONS],
    "total, cap 1/4": [Rule(Entropy(), CarriedBound(e, 0.25)) for e in EPSILONS],
    "top-k": [Rule(Confidence(), TopK(k)) for k in range(1, LENGTH + 1)],
    "threshold": [Rule(Confidence(), Threshold(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "factor": [Rule(Confidence(), Factor(f)) for f in (1e-3, 0.03, 0.1, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)],
    "steps, uniform order": [Rule(Uniform(), Steps(n)) for n in range(1, LENGTH + 1)],
    "MaskGIT, noise 4.5": [Rule(DrawnConfidence(4.5), Steps(n)) for n in range(1, LENGTH + 1)],
    "LLaDA's quota": [Rule(DrawnConfidence(), Steps(n)) for n in range(1, LENGTH + 1)],
    "moment, alpha 4.5": [Rule(Moment(4.5), Steps(n)) for n in range(1, LENGTH + 1)],
    "EB, ties at random": [Rule(Noisy(noise=1e-4), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1/4": [Rule(Noisy(noise=0.25), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1": [Rule(Noisy(), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 4": [Rule(Noisy(noise=4.0), EntropyBound(g)) for g in GAMMAS],
    "EB, margin, noise 1": [Rule(Noisy(Margin()), EntropyBound(g)) for g in GAMMAS],
    "total, noise 1": [Rule(Noisy(), CarriedBound(e)) for e in EPSILONS],
    "steps, noise 1": [Rule(Noisy(), Steps(n)) for n in range(1, LENGTH + 1)],
}

WIDE = tuple(g for g in GAMMAS if g >= 0.1)
LOSSES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)


def _dependence(oracle: Oracle, length: int) -> list[AnyRule]:
    """The dependence bound with the profile of the oracle at hand."""
    profile = oracle_profile(oracle, length)
    return [Rule(Entropy(), DependenceBound(gamma, profile)) for gamma in GAMMAS]


def _auto(oracle: Oracle, length: int) -> list[AnyRule]:
    """The default, with the profile of the oracle at hand, at losses from none to everything."""
    profile = oracle_profile(oracle, length)
    return [default_rule(profile, 1.0, loss).rule for loss in LOSSES]


NEWER: dict[str, list[AnyRule] | Callable[[Oracle, int], list[AnyRule]]] = {
    BASE: [Rule(Entropy(), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1": [Rule(Noisy(), EntropyBound(g)) for g in GAMMAS],
    "dependence bound": _dependence,
    "tempered bound, no profile": [Rule(Entropy(), TemperedBound(0.0, loss, share=loss)) for loss in LOSSES],
    "auto": _auto,
    "threshold": [Rule(Confidence(), Threshold(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "Fréchet": [Rule(Confidence(), Frechet(d)) for d in (0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 1)],
    "hierarchy": [
        Rule(Confidence(), Hierarchy(low, high))
        for low, high in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.5, 0.7, 0.9, 1.0))
        if low <= high
    ],
    "upstream gate": [
        Rule(Entropy(), UpstreamGate(EntropyBound(g), beta))
        for beta, g in itertools.product((0.0, 0.5, 1.0, 2.0, 4.0), (*WIDE, 0.0))
    ],
    "spaced": [
        Rule(Entropy(), Spaced(EntropyBound(g), spacing, None))
        for spacing, g in itertools.product((2, 3), (*WIDE, 0.0))
    ],
    "spaced, noise 1": [
        Rule(Noisy(), Spaced(EntropyBound(g), spacing, None)) for spacing, g in itertools.product((2, 3), (*WIDE, 0.0))
    ],
    "credit": [Rule(Confidence(), Credit(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "ancestral (ReMDM, rate 0)": [Remasking(n, 0.0) for n in (*LENGTHS, 64)],
    "ReMDM, cap": [Remasking(n, rate) for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1, 0.2, 0.5))],
    "ReMDM, rescale": [
        Remasking(n, rate, "rescale") for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1, 0.2, 0.5))
    ],
    "ReMDM, loop": [Remasking(n, rate, "loop") for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1))],
    "P2": [PathPlanning(n, eta) for n, eta in itertools.product(LENGTHS[:8], (0.5, 1.0, 2.0))],
    "WINO": [
        Wino(threshold, back)
        for threshold, back in itertools.product((0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (0.01, 0.1, 0.3, 0.6, 0.9))
    ],
    "editing": [
        Editing(threshold, edit, rounds)
        for threshold, edit, rounds in itertools.product((0.0, 0.3, 0.5, 0.7, 1.0), (0.5, 0.8, 0.95), (1, 16))
    ],
    "EB, then Gibbs": [
        Gibbs(Rule(Entropy(), EntropyBound(g)), sweeps)
        for sweeps, g in itertools.product((0.2, 0.4, 0.6, 1.0, 2.0), (0.3, 1.0, math.inf))
    ],
    "EB, noise 1, then Gibbs": [
        Gibbs(Rule(Noisy(), EntropyBound(g)), sweeps)
        for sweeps, g in itertools.product((0.2, 0.4, 0.6, 1.0, 2.0), (0.3, 1.0, math.inf))
    ],
}
"""The rules of 2025 and 2026 beside EB, its noisy order and the dependence bound."""
BIASED = ("credit", "P2", "WINO", "editing")
"""Those whose draws are biased even one position at a time."""


def _sharp(seed: int) -> TableDenoiser:
    """A random table with its probabilities cubed."""
    weights = random_table(3, LENGTH, seed).weights ** 3
    return TableDenoiser((weights / weights.sum()).reshape((3,) * LENGTH))


ORACLES: dict[str, dict[str, Oracle]] = {
    "lazy chains": {f"stay {stay}": MarkovDenoiser.lazy(3, stay) for stay in (0.55, 0.65, 0.75, 0.85, 0.95)},
    "chains": {f"chain {seed}": random_markov(3, seed, 0.5) for seed in range(3)},
    "HMMs": {f"HMM {seed}": random_hmm(3, 3, seed, 0.4) for seed in range(3)},
    "tables": {f"table {seed}": random_table(3, LENGTH, seed) for seed in range(3)},
    "sharp tables": {f"sharp table {seed}": _sharp(seed) for seed in range(3)},
}
WRONG = {
    "HMM 0, logits off by up to 0.5": PerturbedDenoiser(random_hmm(3, 3, 0, 0.4), 0.5),
    "table 0, logits off by up to 0.5": PerturbedDenoiser(random_table(3, LENGTH, 0), 0.5),
}
LONG = {"lazy chain, stay 0.75": MarkovDenoiser.lazy(3, 0.75), "HMM 0": random_hmm(3, 3, 0, 0.4)}
