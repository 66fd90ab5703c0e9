"""Parts of the site that the package itself says: the table of rules, the command line, the changelog."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import click
import typer.main

from unmask.cli.app import app
from unmask.rules.named import FAMILIES, Family, Setting

ROOT = Path(__file__).parent.parent.parent


def rules() -> str:
    """A section for each named rule: what it is, its settings with their defaults, and its exact law."""
    lines = ["| rule | what it does | settings |", "|---|---|---|"]
    lines += [f"| `{name}` | {_cell(family.summary)} | {_settings(family)} |" for name, family in FAMILIES.items()]
    return "\n".join(lines)


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


def _cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def changelog() -> str:
    """The changelog, which lies beside the README."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").removeprefix("# Changelog").strip()


PARTS = {"rules": rules, "command-line": command_line, "changelog": changelog}
"""What a page may ask for by `<!-- generate: NAME -->`."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the generated parts where pages ask for them."""
    return re.sub(r"<!-- generate: ([\w-]+) -->", lambda found: PARTS[found.group(1)](), markdown)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Refuses a page whose headings leave out a level, or that has not one title.

    Raises:
        ValueError: If so; it stops the build.
    """
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    if levels.count(1) != 1 or any(below > above + 1 for above, below in itertools.pairwise(levels)):
        raise ValueError(f"{page.file.src_uri}: its headings have the levels {levels}; one 1, and none left out")
