"""Parts of the site that the package itself says: the table of rules, the command line, the changelog."""

from __future__ import annotations

import itertools
import json
import math
import posixpath
import re
from pathlib import Path
from typing import Any

import click
import torch
import typer.main

from unmask.cli.app import app
from unmask.oracles import MarkovDenoiser, exact_law
from unmask.rules.named import FAMILIES, Family, Setting, named_rule
from unmask.sampling.conversation import AnyRule, LawKind

SITE = Path(__file__).parent
ROOT = SITE.parent.parent
DATA = ROOT / "unmask" / "data"
REFERENCE, PROMPT = MarkovDenoiser.lazy(symbols=3, stay=0.9), (3, 3, 0, 3, 3, 3)
"""What the table of rules is computed on: a chain that stays where it is with probability 0.9; 3 is the mask."""


def rules() -> str:
    """The table of rules, and a section for each: formula, cost, source, exact law, status and settings."""
    rules, sources = said(), _sources()
    lines = [
        "| rule | unmasks | evaluations for n masks | status | reference: evaluations, KL |",
        "|---|---|---|---|---|",
    ]
    sections = []
    for name, family in FAMILIES.items():
        formula, cost, status = rules[name]
        rule = _example(name, family)
        nfe, kl = _measured(rule)
        figures = f"{nfe}, {'–' if kl is None else f'{kl:.4f}'}"
        lines.append(f"| [`{name}`](#{name}) | {_formula(formula)} | {cost} | {status} | {figures} |")
        parts = [
            f"### {name}",
            f"{family.summary[0].upper()}{family.summary[1:]}.",
            f"- *Unmasks:* {_formula(formula)}",
            f"- *Evaluations for n masks:* {_formula(cost)}" + _asks(rule),
            f"- *Source:* {sources.get(name, 'this package')}",
            f"- *Exact law:* {LAWS[rule.law] if not rule.no_law else f'none: {rule.no_law}'}",
            f"- *Status:* {status}",
            f"- *Settings:* {_settings(family)}",
        ]
        sections.append("\n".join([parts[0], "", parts[1], "", *parts[2:]]))
    return "\n\n".join(["\n".join(lines), "## Each rule", *sections])


def said() -> dict[str, list[str]]:
    """What is written down about each rule: the formula, the cost for n masks, and the status."""
    return json.loads((SITE / "rules.json").read_text(encoding="utf-8"))


LAWS = {
    LawKind.PATH: "followed along every order and completion",
    LawKind.SCORES: "carried along from step to step, with fresh noise in each",
    LawKind.DRAFTS: "carried along from step to step, over the drafts",
    LawKind.VISITS: "followed from state to state, over every draw",
    LawKind.COINS: "followed from step to step, with a coin per position",
    LawKind.CORRECTED: "that of its budget, then a Gibbs kernel for each position drawn again",
    LawKind.SAME: "that of its budget",
    LawKind.ONE: "that of one position at a time in the same order",
}


def _example(name: str, family: Family) -> AnyRule:
    """The rule with its defaults, and its examples where there is none."""
    needed = {key: setting.example for key, setting in family.settings.items() if setting.default is None}
    return named_rule(name, **needed).rule


def _measured(rule: AnyRule) -> tuple[str, float | None]:
    """Expected evaluations and divergence on the reference chain; dashes and `None` where they are not computed."""
    if rule.no_law:
        return "–", None
    law = exact_law(REFERENCE, rule, torch.tensor(PROMPT))
    return ("–" if math.isnan(law.nfe_mean) else f"{law.nfe_mean:.2f}"), max(0.0, law.kl)


def _asks(rule: AnyRule) -> str:
    return "" if rule.asks_once else "; a turn asks more than once, so that caches and other libraries' loops refuse it"


def _sources() -> dict[str, str]:
    """Where each rule was published, from the table of samplers."""
    page = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    rows = page.split("| sampler | composition | command line | source |\n")[1].split("\n\n")[0].splitlines()[1:]
    found: dict[str, str] = {}
    for row in rows:
        *_, command, source = (cell.strip() for cell in row.strip("|").split(" | "))
        name = re.split(r"[: ]", command.strip("`"))[0]
        linked = re.sub(r"\]\((?=[\w-]+\.md)", "](../", source)
        linked = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", linked)
        found.setdefault(name, linked or "this package")
    return found


def cards() -> str:
    """The cards of all models and data that come with the package, one section each."""
    sections = []
    for path in sorted(DATA.rglob("README.md")):
        text = re.sub(r"^!\[.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        title, _, rest = text.partition("\n")
        rest = re.sub(r"^## ", "### ", rest, flags=re.MULTILINE)
        sections.append(
            f"## {title.removeprefix('# ')} {{ #{_card(path)} }}\n\n`{path.parent.relative_to(ROOT)}`\n{rest}"
        )
    return "\n\n".join(sections)


def _card(path: Path) -> str:
    """The anchor of a card: `models-maze`, `sudoku`."""
    return "-".join(path.parent.relative_to(DATA).parts)


def _settings(family: Family) -> str:
    return ", ".join(_setting(name, setting) for name, setting in family.settings.items()) or "none"


def _setting(name: str, setting: Setting) -> str:
    if setting.default is None:
        return f"`{name}` (needed)"
    choices = f" of {', '.join(setting.choices)}" if setting.choices else ""
    return f"`{name}={setting.default}`{_cell(choices)}"


def command_line() -> str:
    """A section for each command: what it does, and its options."""
    root: Any = typer.main.get_command(app)
    return "\n\n".join(_command(f"unmask {name}", command) for name, command in sorted(root.commands.items()))


def _command(name: str, command: Any) -> str:
    if hasattr(command, "commands"):
        parts = [_command(f"{name} {inner}", one) for inner, one in sorted(command.commands.items())]
        return "\n\n".join([f"## {name}", command.help or "", *(part.replace("## ", "### ", 1) for part in parts)])
    context = click.Context(command, info_name=name)
    lines = [f"## {name}", "", _plain(command.help or ""), "", "| option | what it says | default |", "|---|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or parameter.name == "help":
            continue
        names = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
        default = parameter.default
        shown = "" if default is None or default == () or callable(default) else f"`{default}`"
        lines.append(f"| {names} | {_cell(getattr(parameter, 'help', None) or '')} | {shown} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text)


def _formula(text: str) -> str:
    """A formula in Markdown: `H_i` with its index below the line, and nothing in it is markup."""
    escaped = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"_(\w)", r"<sub>\1</sub>", escaped)


def _cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def changelog() -> str:
    """The changelog, which lies beside the README."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").removeprefix("# Changelog").strip()


PARTS = {"rules": rules, "command-line": command_line, "changelog": changelog, "cards": cards}
"""What a page may ask for by `<!-- generate: NAME -->`."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the generated parts where pages ask for them, and lets links to cards lead to the page of cards."""
    whole = re.sub(r"<!-- generate: ([\w-]+) -->", lambda found: PARTS[found.group(1)](), markdown)
    here = posixpath.dirname(page.file.src_uri)
    to = posixpath.relpath("reference/cards.md", here or ".")
    return re.sub(
        r"\]\((?:\.\./)+unmask/data/([\w/-]+)/README\.md\)", lambda m: f"]({to}#{m[1].replace('/', '-')})", whole
    )


def on_page_context(context: Any, page: Any, **_: Any) -> Any:
    """Gives a page that stands by itself the width of a navigation that would list nothing but it."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    return context


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Refuses a page that leads out of the site, whose headings leave out a level, or that has not one title.

    Raises:
        ValueError: If so; it stops the build.
    """
    if outside := re.findall(r'href="((?:\.\./)+(?:unmask|tests|benchmarks|configs)/[^"]*)"', html):
        raise ValueError(f"{page.file.src_uri}: {', '.join(outside)} is not in the site")
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    if levels.count(1) != 1 or any(below > above + 1 for above, below in itertools.pairwise(levels)):
        raise ValueError(f"{page.file.src_uri}: its headings have the levels {levels}; one 1, and none left out")
