"""Finds the sampler with the fewest evaluations whose loss of quality stays within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from ..rules.named import NamedRule
from .study import Outcome, Study


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
    base = study.run(reference, temperature, on_batch)
    trials = []
    for family in families:
        for named in family:
            outcome = study.run(named, temperature, on_batch)
            mean, half = outcome.difference(base)
            lower = mean - z * half / 1.96
            trials.append(Trial(named, outcome, mean, lower, lower >= -tolerance))
            if on_trial is not None:
                on_trial(trials[-1])
            if not trials[-1].accepted:
                break
    return base, trials


def fewest(trials: Sequence[Trial]) -> Trial | None:
    """Returns the accepted trial with the fewest evaluations, or `None` if none was accepted."""
    accepted = [trial for trial in trials if trial.accepted]
    return min(accepted, key=lambda trial: float(trial.outcome.nfe.mean()), default=None)
