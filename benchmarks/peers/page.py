"""The tables of docs/comparison.md, from the saved figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pages import fill
from .measuring import COSTS
from .named import PEERS

ROOT = Path(__file__).parent.parent.parent
PAGE, RESULTS = ROOT / "docs" / "comparison.md", ROOT / "docs" / "results" / "peers.json"


def _cases(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measured cases, each with the peer's name as the tables have it."""
    for name in PEERS:
        if name in report:
            peer = report[name]
            for case in peer["cases"]:
                yield f"{peer['repository']} `{peer['commit']}`, {peer['date']}", case


def table(report: dict[str, Any]) -> str:
    """The laws of the loops, a line each."""
    lines = [
        "| loop | settings | claims | from the claim, alone | in a batch | in a mixed one | a right loop"
        " | from what it does | NFE |",
        "|---|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for peer, case in _cases(report):
        far = [_far(case[key], case["limit"]) if key in case else "–" for key in ("alone", "batch", "mixed")]
        instead = case.get("instead")
        does = f"{_far(instead['distance'], instead['limit'])}: {instead['says']}" if instead else ""
        lines.append(
            f"| {peer} | {case['label']} | `{case['rule']}` | {' | '.join(far)} | {case['chance']:.3f} | {does}"
            f" | {case['nfe']:.2f} |"
        )
    return "\n".join(lines)


def _far(distance: float, limit: float) -> str:
    """A distance, in bold above the limit."""
    return f"**{distance:.3f}**" if distance > limit else f"{distance:.3f}"


def costs_table(report: dict[str, Any]) -> str:
    """The processor's time for the same rules here over that of the loops, a line each."""
    lines = [
        f"| loop | settings | {' | '.join(f'batch {batch:,}' for batch in COSTS)} |",
        "|---|---|" + "---:|" * len(COSTS),
    ]
    for peer, case in _cases(report):
        ratios = [f"{case['cost'][str(batch)]:.2f}" if str(batch) in case["cost"] else "–" for batch in COSTS]
        lines.append(f"| {peer} | {case['label']} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def write_page(report: dict[str, Any]) -> None:
    """Puts the tables between their markers."""
    fill(PAGE, {"peers": table(report), "peers-costs": costs_table(report)})
