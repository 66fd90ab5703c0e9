"""Finds the sampler with the fewest evaluations whose loss of quality stays within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from ..rules.named import NamedRule
from .study import Outcome, Share, Study


@dataclass(frozen=True)
class Trial:
    """One setting, and whether it may be used.

    Attributes:
        named: The rule with its settings.
        outcome: Its results.
        difference: Its mean quality minus the reference's, on the same prompts.
        lower: The one-sided lower confidence limit of that difference.
        accepted: Whether this limit is at most the tolerance below 0, for this setting and all gentler ones of the same
            rule.
    """

    named: NamedRule
    outcome: Outcome
    difference: float
    lower: float
    accepted: bool

    def row(self, temperature: float) -> dict[str, Any]:
        """Returns a summary as a row of a table.

        Args:
            temperature: The temperature of the draw.
        """
        return {
            **self.outcome.row(self.named, temperature),
            "difference": self.difference,
            "lower": self.lower,
            "accepted": self.accepted,
        }


def tune(
    study: Study,
    reference: NamedRule,
    families: Sequence[Sequence[NamedRule]],
    *,
    tolerance: float = 0.005,
    confidence: float = 0.95,
    temperature: float = 1.0,
    on_trial: Callable[[Trial], None] | None = None,
    on_batch: Callable[[], None] | None = None,
    share: Share | None = None,
) -> tuple[Outcome, list[Trial]]:
    """Tries the settings of each rule, beginning with the gentlest, until one loses too much quality.

    A setting is accepted if, with the given confidence, its quality is at most `tolerance` below the reference's:
    `mean(d) - z · sd(d)/√n >= -tolerance` over the paired differences `d`. The settings of a rule are tested in the
    given order, and testing stops at the first one that fails. With such a fixed order, the probability of accepting
    any setting that loses more than the tolerance is at most `1 - confidence` for each rule, however many settings it
    has.

    Args:
        study: A study with prompts of the *validation* split.
        reference: The rule whose quality the others are compared with.
        families: The settings of each rule, the gentlest (most evaluations) first.
        tolerance: The allowed loss, in units of quality.
        confidence: The confidence of each acceptance, in `(0.5, 1)`.
        temperature: The temperature of the draw.
        on_trial: Called with each trial.
        on_batch: Called after each batch.
        share: Has others answer the batches (see `Study.prepare`); the settings that are next for each rule at once.

    Returns:
        The reference's outcome, and the trials. The setting to use is the accepted trial with the fewest evaluations,
        or if there is none, the reference itself.

    Raises:
        ValueError: If tolerance or confidence is out of range.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number >= 0, got {tolerance}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be above 0.5 and below 1, got {confidence}")
    z = NormalDist().inv_cdf(confidence)

    def run(rules: Sequence[NamedRule]) -> list[Outcome]:
        if share is None:
            return [study.run(named, temperature, on_batch) for named in rules]
        study.prepare([(named, temperature) for named in rules], share, on_batch)
        return [study.run(named, temperature) for named in rules]

    trials: list[list[Trial]] = [[] for _ in families]
    waiting = [number for number, family in enumerate(families) if family]
    base, *outcomes = run([reference, *(families[number][0] for number in waiting)])
    while waiting:
        for number, outcome in zip(waiting, outcomes, strict=True):
            own = trials[number]
            mean, half = outcome.difference(base)
            lower = mean - z * half / 1.96
            own.append(Trial(families[number][len(own)], outcome, mean, lower, lower >= -tolerance))
            if on_trial is not None:
                on_trial(own[-1])
        waiting = [one for one in waiting if trials[one][-1].accepted and len(trials[one]) < len(families[one])]
        outcomes = run([families[number][len(trials[number])] for number in waiting])
    return base, [trial for own in trials for trial in own]


def fewest(trials: Sequence[Trial]) -> Trial | None:
    """Returns the accepted trial with the fewest evaluations, or `None` if none was accepted."""
    accepted = [trial for trial in trials if trial.accepted]
    return min(accepted, key=lambda trial: float(trial.outcome.nfe.mean()), default=None)
