"""The rule that a user means by a name: with the settings that the command line and the server have as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import key_values
from ..denoiser import NetworkDenoiser
from ..errors import AdapterError
from ..sampling.conversation import AnyRule
from ..schedule import Schedule
from .auto import LOSS
from .clock import MaskedFraction
from .named import FAMILIES, NO_PROFILE, NamedRule, named_rule
from .profile import Profile, load_profile
from .ranked import Rule

UNNAMED = "auto"
"""The rule where neither a name nor a setting is given."""

CONFIGURED = "entropy-bound"
"""The rule that settings are of where no name is given."""

GAMMA = 0.05
"""γ of `entropy-bound` where none is given, in nats; chosen on validation puzzles. The library itself has none."""

GAMMAS = {"entropy-bound": GAMMA, "dependence-bound": GAMMA}
"""γ by family of rules where none is given."""

COMMITMENT = 0.1
"""The limit on `1 - max p` of `dependence-bound` at temperatures below 1, where none is given."""


def name_or_usual(name: str | None, settings: Mapping[str, Any]) -> str:
    """Returns the name of the rule that a user means who may have named none.

    Args:
        name: The name that was given, if any, perhaps with settings.
        settings: The settings that were given beside it.
    """
    return name if name is not None else CONFIGURED if settings else UNNAMED


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
    own: str | Path | Profile | None = None,
    temperature: float = 1.0,
    gammas: Mapping[str, float] = GAMMAS,
    /,
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
    settings = suited(name, own, temperature) | {key: value for key, value in settings.items() if value is not None}
    if family == "dependence-bound":
        if "profile" not in told:
            settings["profile"] = settings.get("profile") or own
        if settings.get("commitment") is None and "commitment" not in told and temperature < 1:
            settings["commitment"] = COMMITMENT
    return named_rule(name, **settings)


def suited(name: str, own: str | Path | Profile | None, temperature: float) -> dict[str, Any]:
    """Returns what a rule takes of the draw and of the model, where its name does not say it.

    That is the temperature, and the dependence profile of rules that can do without one: the model's, if it has any.

    Args:
        name: Name of the rule, perhaps with settings.
        own: Where the model's dependence profile may be, or the profile.
        temperature: The temperature of the draw.
    """
    family, _, inline = name.partition(":")
    told = key_values(inline)
    takes = FAMILIES[family].settings if family in FAMILIES else {}
    found: dict[str, Any] = {"temperature": temperature} if "temperature" in takes else {}
    if "profile" in takes and takes["profile"].default == NO_PROFILE:
        found["profile"] = _profile_of(own)
    return {key: value for key, value in found.items() if key not in told}


def suited_rule(
    name: str | None, own: str | Path | Profile | None = None, temperature: float = 1.0, /, **settings: Any
) -> NamedRule:
    """Builds the rule of a name for a model and a draw, as the library does: without settings of its own choice.

    Args:
        name: Name of the rule, perhaps with settings; `None` is the usual one.
        own: Where the model's dependence profile may be, or the profile, for rules that can do without one.
        temperature: The temperature of the draw, for rules that take it.
        **settings: Settings of the rule.

    Raises:
        ValueError: If there is no such rule, or a setting is missing or does not apply.
    """
    name = name_or_usual(name, settings)
    return named_rule(name, **suited(name, own, temperature) | settings)


def _profile_of(own: str | Path | Profile | None) -> str | Profile:
    """The profile itself, where one can be loaded from, or `NO_PROFILE`."""
    if own is None or isinstance(own, Profile):
        return NO_PROFILE if own is None else own
    try:
        load_profile(own)
    except AdapterError:
        return NO_PROFILE
    return str(own)


def default_rule(
    model: NetworkDenoiser | str | Path | Profile | None = None, temperature: float = 1.0, loss: float = LOSS
) -> NamedRule:
    """Returns the rule that users get who name none, which is called `auto`.

    Args:
        model: The model that is sampled, as `unmask.load` returns it; its name or folder, where its dependence profile
            may be; or the profile. Without a profile, dependence is priced at entropies.
        temperature: The temperature of the draw.
        loss: The loss that one can bear, in [0, 1]: at temperature 1 the share of the entropy of a sequence that is
            lost by drawing tokens together; at 0, and for tokens that are nearly certain at any temperature, the chance
            that a token which is taken beside others is wrong, as the model has it.

    Returns:
        The rule (`NamedRule.rule`), with what it chose and expects to lose (`NamedRule.says`).

    Raises:
        ValueError: If the loss is not in [0, 1], or the temperature negative.
    """
    own = model.source if isinstance(model, NetworkDenoiser) else model
    return usual_rule(UNNAMED, own, temperature, loss=loss)
