"""The rule of users who name none: which one, with which settings, and what it is expected to lose."""

from __future__ import annotations

from typing import Any

from .budget import probability

LOSS = 0.01
"""The loss that one can bear where none is said. Chosen on validation data of every task (docs/results.md)."""

NOISE = 1.0
"""Noise of the order by entropy at temperature 1."""

ENDING = 100.0
"""At temperature 0, the doubts that may be left when a sequence is ended, as a multiple of the loss."""


def auto_choice(loss: float, temperature: float) -> tuple[str, dict[str, Any]]:
    """Returns the name and the settings of a rule; a profile of the model is still to be given.

    A tempered bound: a token is taken beside others if it is wrong with a chance of at most `loss`, by the model's own
    account, and at temperature 1 also if the dependence of those taken together is within `loss` of their entropy.
    There the order by entropy has noise, for neighbours are equally uncertain and depend on each other most.

    Args:
        loss: The loss that one can bear, in [0, 1].
        temperature: The temperature of the draw.

    Raises:
        ValueError: If the loss is not in [0, 1].
    """
    probability("loss", loss)
    own = {"epsilon": loss, "share": loss, "temperature": temperature}
    if temperature >= 1:
        return "tempered-bound", {"gamma": 0.0, **own, "noise": NOISE}
    return "tempered-bound", {"gamma": ENDING * loss * (1 - temperature), **own, "proxy": "confidence"}


def auto_expects(loss: float, temperature: float, profile: bool) -> str:
    """Says what is expected to be lost, and whether a profile of the model was there to say how."""
    sure = f"a token taken beside others is wrong with a chance of at most {100 * loss:g} %, as the model has it"
    if temperature < 1:
        return sure
    shared = f"at most {100 * loss:g} % of the entropy of a sequence is lost by drawing tokens together; {sure}"
    if profile:
        return shared
    return (
        f"{shared}; without a dependence profile of the model, dependence is priced at entropies, as EB does, in more"
        " evaluations (unmask profile measures one)"
    )
