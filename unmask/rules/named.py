"""Rules by name, for the command line and configuration files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ..checks import key_values
from ..folders import EMBEDDED
from ..sampling.conversation import AnyRule
from ..schedule import SCHEDULES
from .auto import LOSS, auto_choice, auto_expects
from .blind import Dilated, Groups
from .budget import All, Budget, CarriedBound, EntropyBound, Factor, One, Stable, Steps, Threshold, TopK
from .clock import ancestral, extrapolated_first_hitting, first_hitting, parallel_first_hitting
from .confident import Frechet, Hierarchy
from .credit import Credit
from .dependence import AGGREGATES, DependenceBound
from .drawn import DrawnConfidence, Moment
from .editing import Editing
from .filters import Spaced, UpstreamGate
from .gibbs import Gibbs
from .lookahead import Lookahead
from .order import Confidence, Determined, Entropy, HighEntropy, LeftToRight, Margin, Order, Uniform
from .path_planning import PathPlanning
from .profile import Profile, load_profile
from .ranked import Rule
from .remasking import STRATEGIES, Remasking
from .scored import Noisy
from .self_speculative import SelfSpeculative
from .speculative import Speculative
from .tempered import TemperedBound
from .testing import IndependenceTest
from .wino import Wino

FLOOR = 0.05
"""Nats below which the proxy `determined` tells positions apart by their place only."""

PROXIES: dict[str, Callable[[], Order]] = {
    "entropy": Entropy,
    "confidence": Confidence,
    "margin": Margin,
    "uniform": Uniform,
    "determined": lambda: Determined(FLOOR),
    "high-entropy": HighEntropy,
}


@dataclass(frozen=True)
class Setting:
    """A setting of a named rule: a number, or one of some choices.

    Attributes:
        kind: `int`, `float` or `str`.
        default: Its value if none is given; `None` if it must be given.
        choices: The permitted values of a `str`.
        example: A value for small examples and for the tests of every named rule, where there is no default.
    """

    kind: type[int] | type[float] | type[str]
    default: str | int | float | None = None
    choices: tuple[str, ...] = ()
    example: str | int | float | None = None

    def parse(self, name: str, value: Any) -> Any:
        """Returns the value converted to the setting's kind, or raises `ValueError`."""
        if self.choices:
            if str(value) not in self.choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(self.choices)}")
            return str(value)
        try:
            parsed = self.kind(value)
            if self.kind is int and parsed != float(value):
                raise ValueError
            return parsed
        except (TypeError, ValueError):
            kind = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{name} must be {kind}, got {value!r}") from None


def _choice(options: Iterable[str], default: str) -> Setting:
    return Setting(str, default, tuple(options))


def _needed(example: str | int | float) -> Setting:
    """A setting that must be given."""
    return Setting(type(example), example=example)


_BY_ENTROPY, _BY_CONFIDENCE = _choice(PROXIES, "entropy"), _choice(PROXIES, "confidence")
_SCHEDULE = _choice(SCHEDULES, "linear")


def _inner(text: str) -> Rule:
    """The rule whose budget another rule wraps: a name with settings, which are joined by `+`."""
    name, colon, settings = text.partition(":")
    rule = named_rule(name + colon + settings.replace("+", ",")).rule
    if not isinstance(rule, Rule):
        raise ValueError(f"budget={text} is a rule of its own and has no budget to wrap")
    return rule


def _around(text: str, wrap: Callable[[Budget], Budget]) -> Rule:
    """The rule of that name with its budget wrapped."""
    rule = _inner(text)
    return replace(rule, budget=wrap(rule.budget))


NO_PROFILE = "none"
"""What stands for no profile where a rule can do without."""


def _profile(profile: str | Profile) -> Profile:
    """The profile itself, or the one that lies beside a model."""
    if isinstance(profile, Profile):
        return profile
    return _shipped_profile(profile) if profile in EMBEDDED else load_profile(profile)


_shipped_profile = lru_cache(load_profile)
"""What is shipped does not change; sequences whose rules have the same profile can be worked on together."""


def _perhaps(profile: str | Profile) -> Profile | None:
    """The profile of a rule that can do without."""
    return None if profile == NO_PROFILE else _profile(profile)


@dataclass(frozen=True)
class Family:
    """A named rule: what it is, how to build it, and its settings.

    Attributes:
        summary: What the rule does, in one line.
        build: Makes the rule from its settings.
        settings: The settings that it takes, by name.
        says: What a user should know of a choice that the rule makes, from its settings.
    """

    summary: str
    build: Callable[..., AnyRule]
    settings: dict[str, Setting] = field(default_factory=dict)
    says: Callable[..., str] | None = None

    @property
    def setting(self) -> str | None:
        """The setting without a default, if there is one."""
        return next((name for name, setting in self.settings.items() if setting.default is None), None)


def _auto(loss: float, temperature: float, profile: str | Profile) -> AnyRule:
    """The rule that `auto` stands for."""
    return _auto_choice(loss, temperature, profile).rule


def _auto_choice(loss: float, temperature: float, profile: str | Profile) -> NamedRule:
    """The same with its name and settings."""
    name, settings = auto_choice(loss, temperature, _perhaps(profile))
    return named_rule(name, **settings, profile=profile if settings["temperature"] else NO_PROFILE)


def _auto_says(loss: float, temperature: float, profile: str | Profile) -> str:
    """Which rule `auto` stands for, and what it expects to lose."""
    expects = auto_expects(loss, temperature, _perhaps(profile))
    chosen = _auto_choice(loss, temperature, profile)
    return f"{brief(chosen.name, chosen.settings)}: {expects}"


FAMILIES: dict[str, Family] = {
    "auto": Family(
        "chosen for the model and the temperature of the draw; its only setting is the loss that one can bear",
        _auto,
        {"loss": Setting(float, LOSS), "temperature": Setting(float, 1.0), "profile": Setting(str, NO_PROFILE)},
        _auto_says,
    ),
    "top1-entropy": Family("lowest entropy, one at a time", lambda: Rule(Entropy(), One())),
    "top1-confidence": Family("highest confidence, one at a time", lambda: Rule(Confidence(), One())),
    "top1-margin": Family("largest margin, one at a time", lambda: Rule(Margin(), One())),
    "uniform": Family("random order, one at a time", lambda: Rule(Uniform(), One())),
    "left-to-right": Family("autoregressive, one at a time", lambda: Rule(LeftToRight(), One())),
    "speculative": Family(
        "one at a time, exactly, the next positions drafted and verified in the same evaluation",
        lambda draft, proxy: Rule(PROXIES[proxy](), Speculative(draft)),
        {"draft": Setting(int, 4), "proxy": _BY_ENTROPY},
    ),
    "topk": Family(
        "the k best at once",
        lambda k, proxy: Rule(PROXIES[proxy](), TopK(k)),
        {"k": _needed(2), "proxy": _BY_CONFIDENCE},
    ),
    "threshold": Family(
        "all with max p >= threshold, at least one (Fast-dLLM)",
        lambda threshold, proxy: Rule(PROXIES[proxy](), Threshold(threshold)),
        {"threshold": _needed(0.6), "proxy": _BY_CONFIDENCE},
    ),
    "factor": Family(
        "longest prefix with (n + 1)(1 - max p) < factor (Fast-dLLM)",
        lambda factor, proxy: Rule(PROXIES[proxy](), Factor(factor)),
        {"factor": _needed(1.1), "proxy": _BY_CONFIDENCE},
    ),
    "klass": Family(
        "all that are confident and stable over the last evaluations, at least one (KLASS)",
        lambda threshold, kl, history: Rule(Confidence(), Stable(threshold, kl, history)),
        {"threshold": _needed(0.6), "kl": Setting(float, 0.01), "history": Setting(int, 2)},
    ),
    "entropy-bound": Family(
        "EB-Sampler: longest prefix with sum H - max H <= gamma",
        lambda gamma, proxy: Rule(PROXIES[proxy](), EntropyBound(gamma)),
        {"gamma": _needed(0.4), "proxy": _BY_ENTROPY},
    ),
    "carried-bound": Family(
        "a total of epsilon nats for the sequence, unspent ones carried forward",
        lambda epsilon, proxy: Rule(PROXIES[proxy](), CarriedBound(epsilon)),
        {"epsilon": _needed(0.3), "proxy": _BY_ENTROPY},
    ),
    "noisy-bound": Family(
        "the EB-Sampler's budget in an order with noise: fewer evaluations at the same divergence",
        lambda gamma, proxy, noise: Rule(Noisy(PROXIES[proxy](), noise), EntropyBound(gamma)),
        {"gamma": _needed(0.4), "proxy": _BY_ENTROPY, "noise": Setting(float, 1.0)},
    ),
    "dependence-bound": Family(
        "all that fit gamma by their dependence on each other, as the model's profile has it",
        lambda gamma, profile, proxy, aggregate, quantile, commitment: Rule(
            PROXIES[proxy](),
            DependenceBound(gamma, _profile(profile), aggregate, quantile=quantile or None, commitment=commitment),
        ),
        {
            "gamma": _needed(0.4),
            "profile": _needed("text"),
            "proxy": _BY_ENTROPY,
            "aggregate": _choice(AGGREGATES, "sum"),
            "quantile": Setting(float, 0.0),
            "commitment": Setting(float, 1.0),
        },
    ),
    "tempered-bound": Family(
        "all that fit gamma by dependence and epsilon by commitment, priced at the temperature of the draw",
        lambda gamma, epsilon, share, ending, temperature, profile, proxy, noise: Rule(
            Noisy(PROXIES[proxy](), noise) if noise else PROXIES[proxy](),
            TemperedBound(gamma, epsilon, temperature, _perhaps(profile), share, ending),
        ),
        {
            "gamma": _needed(0.4),
            "epsilon": Setting(float, 0.01),
            "share": Setting(float, 0.0),
            "ending": Setting(float, 0.0),
            "temperature": Setting(float, 1.0),
            "profile": Setting(str, NO_PROFILE),
            "proxy": _BY_ENTROPY,
            "noise": Setting(float, 0.0),
        },
    ),
    "independence-test": Family(
        "all that drafts of the others leave unmoved, by extra evaluations, which count (PUNT)",
        lambda epsilon, proxy: Rule(PROXIES[proxy](), IndependenceTest(epsilon)),
        {"epsilon": _needed(0.3), "proxy": _BY_CONFIDENCE},
    ),
    "random-k": Family("random order, k at a time", lambda k: Rule(Uniform(), TopK(k)), {"k": _needed(2)}),
    "groups": Family(
        "random order, groups of given sizes (unmask schedule finds the best)",
        lambda sizes: Rule(Uniform(), Groups.parse(sizes)),
        {"sizes": _needed("1+2")},
    ),
    "dilated": Family(
        "multiples of a spacing that halves: 0 begins with half the sequence (DUS)",
        lambda spacing: Rule(LeftToRight(), Dilated(spacing or None)),
        {"spacing": Setting(int, 0)},
    ),
    "steps": Family(
        "a fixed number of evaluations",
        lambda steps, proxy: Rule(PROXIES[proxy](), Steps(steps)),
        {"steps": _needed(3), "proxy": _BY_CONFIDENCE},
    ),
    "all": Family("everything at once", lambda: Rule(Entropy(), All())),
    "first-hitting": Family(
        "first-hitting sampler: random order with hitting times, one at a time",
        lambda schedule: first_hitting(SCHEDULES[schedule]),
        {"schedule": _SCHEDULE},
    ),
    "first-hitting-parallel": Family(
        "first-hitting order in a fixed number of evaluations",
        lambda steps, schedule: parallel_first_hitting(steps, SCHEDULES[schedule]),
        {"steps": _needed(3), "schedule": _SCHEDULE},
    ),
    "first-hitting-extrapolated": Family(
        "first-hitting order, tokens drawn from an extrapolation of the last two evaluations (high-order)",
        lambda steps, schedule, floor: extrapolated_first_hitting(steps, SCHEDULES[schedule], floor),
        {"steps": _needed(3), "schedule": _SCHEDULE, "floor": Setting(float, 0.1)},
    ),
    "ancestral": Family(
        "ancestral sampling on a grid of time steps",
        lambda steps, schedule: ancestral(steps, SCHEDULES[schedule]),
        {"steps": _needed(3), "schedule": _SCHEDULE},
    ),
    "llada-quota": Family(
        "LLaDA as published: most probable draws first, a fixed quota per step (biased)",
        lambda steps: Rule(DrawnConfidence(), Steps(steps)),
        {"steps": _needed(3)},
    ),
    "maskgit": Family(
        "MaskGIT: most probable draws first, with Gumbel noise that fades (biased)",
        lambda steps, gumbel: Rule(DrawnConfidence(gumbel), Steps(steps)),
        {"steps": _needed(3), "gumbel": Setting(float, 4.5)},
    ),
    "moment": Family(
        "the moment sampler: MaskGIT's limit, chooses before it draws, at a lower temperature (biased)",
        lambda steps, alpha: Rule(Moment(alpha), Steps(steps)),
        {"steps": _needed(3), "alpha": Setting(float, 4.5)},
    ),
    "upstream-gate": Family(
        "takes of a budget what has at most beta nats of open masks before it (Reliable Parallel Decoding)",
        lambda beta, window, budget: _around(budget, lambda inner: UpstreamGate(inner, beta, window)),
        {"beta": Setting(float, 4.0), "window": Setting(int, 32), "budget": Setting(str, "threshold:threshold=0.9")},
    ),
    "spaced": Family(
        "keeps what a budget takes apart by a distance that shrinks with the masks (DUS); block 0: no blocks",
        lambda spacing, block, budget: _around(budget, lambda inner: Spaced(inner, spacing, block or None)),
        {"spacing": Setting(int, 8), "block": Setting(int, 32), "budget": Setting(str, "entropy-bound:gamma=0.1")},
    ),
    "frechet": Family(
        "longest prefix whose most probable tokens are the most probable together by more than delta (Fast-dLLM++)",
        lambda delta, proxy: Rule(PROXIES[proxy](), Frechet(delta)),
        {"delta": _needed(0.3), "proxy": _BY_CONFIDENCE},
    ),
    "hierarchy": Family(
        "the most confident of each run of masks above low, and all above high (dInfer)",
        lambda low, high: Rule(Confidence(), Hierarchy(low, high)),
        {"low": Setting(float, 0.4), "high": Setting(float, 0.9)},
    ),
    "credit": Family(
        "threshold on logits with credit for tokens that were the most probable before (CreditDecoding, biased)",
        lambda threshold, alpha, gamma, beta: Rule(Confidence(), Credit(threshold, alpha, gamma, beta)),
        {
            "threshold": _needed(0.6),
            "alpha": Setting(float, 0.7),
            "gamma": Setting(float, 0.2),
            "beta": Setting(float, 0.8),
        },
    ),
    "remdm": Family(
        "ancestral sampling on a grid of time steps that may mask tokens again (ReMDM)",
        lambda steps, rate, strategy, schedule: Remasking(steps, rate, strategy, SCHEDULES[schedule]),
        {
            "steps": _needed(6),
            "rate": Setting(float, 0.1),
            "strategy": _choice(STRATEGIES, "cap"),
            "schedule": _SCHEDULE,
        },
    ),
    "p2": Family(
        "masks the least likely of drafts and tokens again in every step (P2, biased)",
        lambda steps, eta: PathPlanning(steps, eta),
        {"steps": _needed(4), "eta": Setting(float, 1.0)},
    ),
    "wino": Family(
        "writes above a threshold, and masks again what is less probable than `back` given the rest (WINO, biased)",
        lambda threshold, back: Wino(threshold, back),
        {"threshold": Setting(float, 0.6), "back": Setting(float, 0.9)},
    ),
    "edit": Family(
        "writes above a threshold, replaces tokens where another one has p > edit (LLaDA2.1, biased)",
        lambda threshold, edit, rounds, look: Editing(threshold, edit, rounds, look == "shadows"),
        {
            "threshold": Setting(float, 0.7),
            "edit": Setting(float, 0.5),
            "rounds": Setting(int, 16),
            "look": _choice(("shadows", "visible"), "shadows"),
        },
    ),
    "lookahead": Family(
        "drafts and verifies a budget's next steps in the same evaluation: the same tokens in fewer evaluations (PSD)",
        lambda depth, budget: Lookahead(_inner(budget), depth),
        {"depth": Setting(int, 2), "budget": Setting(str, "entropy-bound:gamma=0.1")},
    ),
    "s2d2": Family(
        "left to right by a block model at block size 1, which verifies what its own blocks draft (S2D2)",
        lambda draft: SelfSpeculative(draft),
        {"draft": Setting(int, 8)},
    ),
    "gibbs": Family(
        "writes everything by a budget, then draws positions again one at a time, which leaves an exact law alone",
        lambda sweeps, budget: Gibbs(_inner(budget), sweeps),
        {"sweeps": Setting(float, 1.0), "budget": Setting(str, "entropy-bound:gamma=0.1")},
    ),
}


def register(name: str, family: Family) -> None:
    """Gives a rule a name, which every command and `named_rule` then accept.

    Args:
        name: Words of small letters and digits, joined by hyphens.
        family: What the rule does, and how it is built from its settings.

    Raises:
        ValueError: If another rule has this name, or it is not a valid name.
    """
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) is None:
        raise ValueError(f"a rule's name is words of small letters and digits, joined by hyphens, got {name!r}")
    if FAMILIES.get(name, family) is not family:
        raise ValueError(f"there is a rule {name!r} already")
    FAMILIES[name] = family


@dataclass(frozen=True)
class NamedRule:
    """A rule with the name and the settings by which it was requested.

    Attributes:
        name: The name.
        settings: The settings.
        rule: The rule.
        says: What a user should know of a choice that the rule makes; empty for most rules.
    """

    name: str
    settings: dict[str, Any]
    rule: AnyRule
    says: str = ""

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}:{inner}" if inner else self.name

    def as_json(self) -> dict[str, str]:
        """Returns what a report says of the rule: `rule`, its text, and `says`, unless that is empty."""
        return {"rule": str(self)} | ({"says": self.says} if self.says else {})


def brief(name: str, settings: Mapping[str, Any]) -> str:
    """Returns a rule's name with only those settings that differ from the family's defaults, for tables."""
    family = FAMILIES[name]
    told = {
        key: value for key, value in settings.items() if value != family.settings[key].default and value != "measured"
    }
    inner = ",".join(f"{key}={value}" for key, value in told.items())
    return f"{name}:{inner}" if inner else name


def named_rule(name: str, /, **settings: Any) -> NamedRule:
    """Builds a rule from its name and settings; settings that are `None` count as not given.

    Args:
        name: One of `FAMILIES`, or `name:key=value,key=value`.
        **settings: The rule's settings (see `Family.settings`). A profile is the name of a model, the folder that holds
            it, or a `Profile`, which is then listed as "measured".

    Raises:
        ValueError: If the name is unknown, a setting is missing, does not apply, or is out of range.
    """
    name, _, inline = name.partition(":")
    given = {key: value for key, value in settings.items() if value is not None}
    given |= key_values(inline)
    family = FAMILIES.get(name)
    if family is None:
        near = get_close_matches(name, FAMILIES, 1)
        meant = f"did you mean {near[0]}? The rules are" if near else "choose one of"
        raise ValueError(f"unknown rule {name!r}; {meant} {', '.join(FAMILIES)}")
    extra = sorted(set(given) - set(family.settings))
    if extra:
        takes = f"it takes {', '.join(sorted(family.settings))}" if family.settings else "it takes no settings"
        raise ValueError(f"{', '.join(extra)} does not apply to the rule {name}; {takes}")
    used = {}
    for key, setting in family.settings.items():
        if key not in given and setting.default is None:
            raise ValueError(f"the rule {name} needs a value for {key}")
        used[key] = setting.parse(key, given.get(key, setting.default))
    own = {key: value for key, value in given.items() if isinstance(value, Profile)}
    says = "" if family.says is None else family.says(**used | own)
    return NamedRule(name, used | dict.fromkeys(own, "measured"), family.build(**used | own), says)
