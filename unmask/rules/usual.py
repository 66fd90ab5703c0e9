"""The rule that a user means by a name: with the settings that the command line and the server have as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checks import key_values
from ..sampling.conversation import AnyRule
from ..schedule import Schedule
from .clock import MaskedFraction
from .named import NamedRule, named_rule
from .profile import Profile
from .ranked import Rule

GAMMA = 0.05
"""γ of `entropy-bound` where none is given, in nats; chosen on validation puzzles. The library itself has none."""

GAMMAS = {"entropy-bound": GAMMA, "dependence-bound": GAMMA}
"""γ by family of rules where none is given."""

COMMITMENT = 0.1
"""The limit on `1 - max p` of `dependence-bound` at temperatures below 1, where none is given."""


def timed(rule: AnyRule, schedule: Schedule) -> AnyRule:
    """Returns the rule with a clock that reads the time off the share of masks, unless it has one or cannot have one.

    Args:
        rule: Any rule.
        schedule: The noise schedule of the denoiser that is conditioned on the time.
    """
    if isinstance(rule, Rule) and rule.clock is None:
        return replace(rule, clock=MaskedFraction(schedule))
    return rule


def usual_rule(
    name: str,
    own: str | Profile | None = None,
    temperature: float = 1.0,
    gammas: Mapping[str, float] = GAMMAS,
    **settings: Any,
) -> NamedRule:
    """Builds the rule that a user names, with the usual settings where the user gives none.

    Args:
        name: Name of the rule, perhaps with settings (`entropy-bound:proxy=margin`).
        own: Where the model's dependence profile is, or the profile, for a rule that reads one and is told no other.
        temperature: The temperature of the draw.
        gammas: γ by family of rules where none is given, in nats.
        **settings: Settings of the rule; those that are `None` count as not given.

    Raises:
        ValueError: If there is no such rule, or a setting is missing, given twice, or does not apply.
    """
    family, _, inline = name.partition(":")
    told = key_values(inline)
    for key, value in settings.items():
        if key in told and value is not None and str(value) != told[key]:
            raise ValueError(f"{key} is given twice, as {told[key]} in the rule {name} and as {value} beside it")
    if family in gammas and settings.get("gamma") is None and "gamma" not in told:
        settings["gamma"] = gammas[family]
    if family == "dependence-bound":
        if "profile" not in told:
            settings["profile"] = settings.get("profile") or own
        if settings.get("commitment") is None and "commitment" not in told and temperature < 1:
            settings["commitment"] = COMMITMENT
    return named_rule(name, **settings)
