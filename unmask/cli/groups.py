"""Options that several commands have, declared once: a parameter of a command may be a dataclass of options."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints, overload

import typer

from ..checks import key_values
from ..folders import EMBEDDED
from ..hub import HubName
from ..rules.named import FAMILIES, NamedRule
from ..rules.profile import Profile
from ..rules.usual import CONFIGURED, GAMMA, GAMMAS, UNNAMED, name_or_usual, usual_rule


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of its groups.

    A parameter of the command that is annotated with a dataclass stands for the dataclass's fields, in their order.
    Each field is an option with the field's annotation and default. The command is called with the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(group := hints[name]):
            assert isinstance(group, type)
            groups[name] = group
            fields = get_type_hints(group, include_extras=True)
            parameters += [
                _option(field.name, fields[field.name], field.default) for field in dataclasses.fields(group)
            ]
        else:
            parameters.append(_option(name, hints[name], parameter.default))

    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    called.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return called


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=empty)


@dataclass(frozen=True)
class RuleOptions:
    """Which rule, and its settings: given in its name, by `-o`, or, for the most common, by options of their own."""

    rule: Annotated[
        str | None,
        typer.Option(
            help=f"NAME or NAME:key=value,key=value; a name is one of: {', '.join(FAMILIES)}."
            f" Default: {UNNAMED}, or {CONFIGURED} if settings are given."
        ),
    ] = None
    setting: Annotated[
        list[str] | None, typer.Option("-o", "--setting", help="A setting of the rule, key=value; may be repeated.")
    ] = None
    gamma: Annotated[
        float | None, typer.Option(help=f"Setting of entropy-bound and dependence-bound: nats (default here {GAMMA}).")
    ] = None
    k: Annotated[int | None, typer.Option("--k", help="Setting of topk: positions per evaluation.")] = None
    threshold: Annotated[
        float | None, typer.Option(help="Setting of threshold: the lowest probability at which a token is accepted.")
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", help="Setting: number of evaluations, or of time steps for ancestral.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the options give besides those in the name.

        Raises:
            ValueError: If an `-o` is not `key=value`, or a setting is given twice.
        """
        own = {name: getattr(self, name) for name in ("gamma", "k", "threshold", "steps")}
        settings: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        for text in self.setting or ():
            for key, value in key_values(text).items():
                if str(settings.get(key, value)) != value:
                    raise ValueError(f"{key} is given twice, as {settings[key]} and as {value}")
                settings.setdefault(key, value)
        return settings

    def named(self, own: str | Profile | None, temperature: float, gammas: Mapping[str, float] = GAMMAS) -> NamedRule:
        """Builds the rule; see `usual_rule` for the arguments and errors."""
        return usual_rule(self.name, own, temperature, gammas, **self.settings())

    @property
    def name(self) -> str:
        """The name of the rule; where none is given that of the default, or of the rule that settings alone are of."""
        return name_or_usual(self.rule, self.settings())


USUAL = RuleOptions()
"""What is chosen where nothing is given."""


@dataclass(frozen=True)
class FromHub:
    """Which version of a model of the hub to load, and whether to contact the hub."""

    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a model of the hub; same as owner/name@REVISION."),
    ] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not contact the hub: use the models downloaded before.")
    ] = False

    @overload
    def pinned(self, model: str) -> str: ...

    @overload
    def pinned(self, model: str | None) -> str | None: ...

    def pinned(self, model: str | None) -> str | None:
        """Returns the name of a model with its revision. With `--offline`, this process no longer contacts the hub.

        Raises:
            ValueError: If a revision is given for a model that is not from the hub.
        """
        if self.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        if self.revision is None:
            return model
        here = model is None or model in EMBEDDED or Path(model).is_dir()
        named = None if here else HubName.read(str(model), self.revision)
        if named is None:
            raise ValueError(f"--revision goes with owner/name of a model of the hub, and not with {model!r}")
        return str(named)


NEWEST = FromHub()
"""The newest version, from the hub or the cache."""
