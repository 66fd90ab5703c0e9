"""Rules by name, for the command line and configuration files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..schedule import SCHEDULES, Schedule
from .budget import All, Budget, EntropyBound, Factor, One, Steps, Threshold, TopK
from .clock import ancestral, first_hitting, parallel_first_hitting
from .order import Confidence, Entropy, LeftToRight, Margin, Order, Uniform
from .rule import Rule

PROXIES: dict[str, Callable[[], Order]] = {
    "entropy": Entropy,
    "confidence": Confidence,
    "margin": Margin,
    "uniform": Uniform,
}


@dataclass(frozen=True)
class _Family:
    """How a named rule is put together: its order (`None`: by proxy), its own setting, its default proxy."""

    summary: str
    order: Callable[[], Order] | None = None
    setting: str | None = None
    proxy: str = "entropy"


FAMILIES: dict[str, _Family] = {
    "top1-entropy": _Family("lowest entropy, one at a time", Entropy),
    "top1-confidence": _Family("highest confidence, one at a time", Confidence),
    "top1-margin": _Family("largest margin, one at a time", Margin),
    "uniform": _Family("random order, one at a time", Uniform),
    "left-to-right": _Family("autoregressive, one at a time", LeftToRight),
    "topk": _Family("the k best at once", setting="k", proxy="confidence"),
    "threshold": _Family("all with max p >= threshold, at least one", setting="threshold", proxy="confidence"),
    "factor": _Family(
        "Fast-dLLM: longest prefix with (n + 1)(1 - max p) < factor", setting="factor", proxy="confidence"
    ),
    "entropy-bound": _Family("EB-Sampler: longest prefix with sum H - max H <= gamma", setting="gamma"),
    "steps": _Family("a fixed number of evaluations", setting="steps", proxy="confidence"),
    "all": _Family("everything at once"),
    "first-hitting": _Family("first-hitting sampler: random order with hitting times, one at a time", Uniform),
    "first-hitting-parallel": _Family("first-hitting order in a fixed number of evaluations", Uniform, "steps"),
    "ancestral": _Family("ancestral sampling on a grid of time steps", Uniform, "steps"),
}

_TIMED = ("first-hitting", "first-hitting-parallel", "ancestral")


@dataclass(frozen=True)
class NamedRule:
    """A rule with the name and settings it was asked for by."""

    name: str
    settings: dict[str, Any]
    rule: Rule

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}:{inner}" if inner else self.name


def named_rule(name: str, **settings: Any) -> NamedRule:
    """Builds a rule from its name and settings; settings that are `None` count as not given.

    Args:
        name: One of `FAMILIES`, or `name:key=value,key=value`.
        **settings: `gamma`, `k`, `threshold`, `factor`, `steps`, `proxy` and `schedule`, where they apply.

    Raises:
        ValueError: If the name is unknown, a setting is missing, does not apply, or is out of range.
    """
    name, _, inline = name.partition(":")
    given = {key: value for key, value in settings.items() if value is not None}
    for item in filter(None, inline.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"expected key=value after the rule's name, got {item!r}")
        given[key.strip()] = value.strip()
    family = FAMILIES.get(name)
    if family is None:
        raise ValueError(f"unknown rule {name!r}; choose one of {', '.join(FAMILIES)}")
    allowed = {family.setting} if family.setting else set()
    if family.order is None and name != "all":
        allowed.add("proxy")
    if name in _TIMED:
        allowed.add("schedule")
    extra = sorted(set(given) - allowed)
    if extra:
        takes = f"it takes {', '.join(sorted(allowed))}" if allowed else "it takes no settings"
        raise ValueError(f"{', '.join(extra)} does not apply to the rule {name}; {takes}")
    if family.setting and family.setting not in given:
        raise ValueError(f"the rule {name} needs a value for {family.setting}")
    proxy = str(given.get("proxy", family.proxy))
    if proxy not in PROXIES:
        raise ValueError(f"unknown proxy {proxy!r}; choose one of {', '.join(PROXIES)}")
    order = (family.order or PROXIES[proxy])()
    used: dict[str, Any] = {}
    budget: Budget = One()
    if name in _TIMED:
        schedule = str(given.get("schedule", "linear"))
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if family.setting:
            used[family.setting] = _number(family.setting, given[family.setting])
        used["schedule"] = schedule
        return NamedRule(name, used, _timed(name, used, SCHEDULES[schedule]))
    if name == "all":
        budget = All()
    elif family.setting:
        value = _number(family.setting, given[family.setting])
        used[family.setting] = value
        budget = {"gamma": EntropyBound, "k": TopK, "threshold": Threshold, "factor": Factor, "steps": Steps}[
            family.setting
        ](value)
    if "proxy" in allowed:
        used["proxy"] = proxy
    return NamedRule(name, used, Rule(order, budget))


def _timed(name: str, used: dict[str, Any], schedule: Schedule) -> Rule:
    if name == "ancestral":
        return ancestral(used["steps"], schedule)
    if name == "first-hitting-parallel":
        return parallel_first_hitting(used["steps"], schedule)
    return first_hitting(schedule)


def _number(setting: str, value: Any) -> int | float:
    try:
        return int(value) if setting in ("k", "steps") else float(value)
    except (TypeError, ValueError):
        kind = "a whole number" if setting in ("k", "steps") else "a number"
        raise ValueError(f"{setting} must be {kind}, got {value!r}") from None
