"""The rule of users who name none: which one, with which settings, and what it is expected to lose."""

from __future__ import annotations

from typing import Any

from .budget import probability
from .profile import Profile

LOSS = 0.01
"""The loss that one can bear where none is said. Chosen on validation data (docs/results.md)."""

SURE = (1.0, 0.3)
"""The largest chance that a token is wrong, as a multiple of the loss: at temperature 0, and at 1 (there gamma, too).

A token that is drawn is wrong with just this chance, where the argmax is wrong less often than the model fears.
"""

ENDING = (10.0, 3.0)
"""The doubts with which a sequence is ended, as a multiple of the loss: at temperature 0, and at 1.

At temperature 0, 100 would take fewer evaluations on Sudoku, and lose answers elsewhere (`python -m benchmarks.rules
ending`).
"""

OPEN = 0.05
"""Nats: data are open if this is left of the entropy of a position when nearly all others are known."""


def is_open(profile: Profile | None) -> bool:
    """Whether what is masked is left uncertain by the rest, as in text; not in puzzles, sums or chemical reactions.

    It is read off the smallest masked shares that were measured: the mean of the smaller entropy of two positions.
    """
    if profile is None:
        return False
    pairs, smaller = profile.pairs.sum((0, 2, 3)), profile.smaller.sum((0, 2, 3))
    seen = pairs > 0
    return bool(seen.any()) and float((smaller[seen] / pairs[seen])[0]) > OPEN


def auto_choice(loss: float, temperature: float, profile: Profile | None) -> tuple[str, dict[str, Any]]:
    """Returns the name and the settings of a rule, but for the profile.

    It is a tempered bound. Where data are open, waiting does not make tokens certain, and none is a commitment: tokens
    are drawn together if their dependence is within `loss` of their entropy. Everywhere else a token is taken beside
    others if it is wrong with a chance of at most `loss`, by the model's own account, and a sequence is ended where
    little doubt is left; at temperature 1 the limits are lower, and there is one to the dependence besides.

    Args:
        loss: The loss that one can bear, in [0, 1].
        temperature: The temperature of the draw.
        profile: The dependence profile of the model; `None` if there is none, and then data count as not open.

    Raises:
        ValueError: If the loss is not in [0, 1].
    """
    probability("loss", loss)
    if is_open(profile):
        own = {"gamma": 0.0, "epsilon": loss, "share": loss, "ending": 0.0}
        return "tempered-bound", {**own, "temperature": 1.0, "proxy": "entropy"}
    hot = min(temperature, 1.0)
    sure, ending = (loss * ((1 - hot) * cold + hot * warm) for cold, warm in (SURE, ENDING))
    own = {"gamma": loss * SURE[1] if hot == 1 else 0.0, "epsilon": sure, "share": 0.0, "ending": ending}
    # Below 1 it is priced as at 0: what is uncertain is a commitment.
    return "tempered-bound", {**own, "temperature": float(hot == 1), "proxy": "entropy" if hot == 1 else "confidence"}


def auto_expects(loss: float, temperature: float, profile: Profile | None) -> str:
    """Says what is expected to be lost, and whether a profile of the model was there to say how."""
    if is_open(profile):
        return f"as its profile has it, tokens drawn together lose at most {100 * loss:g} % of a sequence's entropy"
    chosen = auto_choice(loss, temperature, profile)[1]
    told = (
        f"as the model has it, a token taken beside others is wrong with a chance of at most"
        f" {100 * chosen['epsilon']:.2g} %, or is among the last, of which at most {chosen['ending']:.2g} are wrong"
    )
    if profile is not None:
        return told
    return (
        f"{told}; without a dependence profile of the model, dependence is bounded by entropies (unmask profile"
        " measures one)"
    )
