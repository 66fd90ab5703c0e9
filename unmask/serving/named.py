"""The rules that requests name, within what a server can afford."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..rules.named import FAMILIES, NamedRule
from ..rules.usual import name_or_usual, suited, usual_rule
from .bodies import Draw
from .refusals import Refused, blaming
from .served import Served

LARGEST_SETTING = 4096
"""Whole-number settings of rules beyond are refused: some take memory or time in proportion."""

MOST_STATES = 32
"""Likewise of those that say how many states of a sequence are evaluated at once."""

_STATES = ("draft", "depth")
_PROFILE = re.compile(r"profile\s*=\s*([^,+]*)")


def rule_of(body: Draw, asked: Served, served: Sequence[Served]) -> NamedRule:
    """The rule that a request names.

    Args:
        body: The request.
        asked: The model that it is for.
        served: All models of the server.

    Raises:
        Refused: If there is none, it does not take its settings, or they would cost too much.
    """
    with blaming("settings" if body.rule is None and body.settings else "rule"):
        given = dict(body.settings or {})
        text = name_or_usual(body.rule, given)
        profiles = [*_PROFILE.findall(text), *_PROFILE.findall(str(given))]
        profiles += [str(value) for key, value in given.items() if key == "profile"]
        known = [one.name for one in served if one.folder == one.name]
        if any(one.strip() not in known for one in profiles):
            raise ValueError(f"profile is one of the shipped models of this server: {', '.join(known)}")
        temperature = 1.0 if body.temperature is None else body.temperature
        named = usual_rule(text, asked.folder or None, temperature, **given)
    for key, value in named.settings.items():
        most = MOST_STATES if key in _STATES else LARGEST_SETTING
        if isinstance(value, int) and value > most:
            raise Refused(f"{key} is at most {most} on this server, got {value}", "rule")
        inner = re.search(r"\d{5,}", value) if isinstance(value, str) and key == "budget" else None
        if inner is not None:
            raise Refused(f"a setting of the budget is too large: {inner[0]:.20}", "rule")
    return named


def rules() -> list[dict[str, Any]]:
    """What `GET /v1/rules` says of each rule. A setting is `own` if request and model give it when it is left out."""
    told = []
    for name, family in FAMILIES.items():
        own = suited(name, None, 1.0)
        settings = {
            key: {
                "type": one.kind.__name__,
                "own": key in own,
                "default": one.default,
                "choices": list(one.choices) or None,
                "example": one.example if one.default is None else one.default,
            }
            for key, one in family.settings.items()
        }
        told.append({"name": name, "summary": family.summary, "settings": settings})
    return told
