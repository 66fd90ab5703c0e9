"""`python -m benchmarks.peers`: see the package."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unmask.viewing.progress import progress

from . import __doc__ as about
from .case import borrowed_names
from .measuring import SAMPLES, costs, measured, ways
from .named import PEERS, Peer
from .page import RESULTS, costs_table, table, write_page


def version(peer: Peer, clone: Path) -> dict[str, str]:
    """Commit and date of a clone; the version of a package that was installed or unpacked there."""
    for wheel in importlib.metadata.distributions(name=peer.repository.rpartition("/")[2], path=[str(clone)]):
        return {"commit": wheel.version, "date": "PyPI"}
    command = ["git", "-C", str(clone), "log", "-1", "--format=%h %cs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    commit, _, date = done.stdout.strip().partition(" ")
    return {"commit": commit or "unknown", "date": date or "unknown"}


def figures(peer: Peer, clone: Path, samples: int, only: str | None, before: dict[str, Any]) -> dict[str, Any]:
    """The figures of a peer.

    Args:
        peer: The peer.
        clone: The folder of its clone.
        samples: Sequences per law.
        only: `laws` or `costs`, to keep the others from `before`.
        before: The saved figures.
    """
    kept = {case["label"]: case for case in before.get("cases", [])}
    found = []
    with borrowed_names(), progress() as shown:
        cases = peer.cases(clone)
        job = shown.add_task(peer.repository, total=samples * sum(len(ways(case)) for case in cases))
        for case in cases:
            saved = kept.get(case.label, {})
            law = saved if only == "costs" else measured(case, samples, partial(shown.advance, job))
            cost = saved.get("cost", {}) if only == "laws" else costs(case)
            found.append({**law, "cost": cost})
    return {"repository": peer.repository, **version(peer, clone), "torch": torch.__version__, "cases": found}


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=CLONE", help=f"names: {', '.join(PEERS)}; or render")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="sequences per law")
    parser.add_argument("--only", choices=("laws", "costs"), help="measure these, and keep the other saved figures")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and write nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    saved: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report = {} if asked.json else dict(saved)
    for one in asked.peers:
        name, _, folder = one.partition("=")
        if one == "render":
            continue
        if name not in PEERS or not folder:
            parser.error(f"unknown peer {one!r}; expected NAME=CLONE with a name of {', '.join(PEERS)}")
        if asked.only == "costs" and name not in saved:
            parser.error(f"there are no saved laws of {name} to keep: leave out --only costs")
        began = time.perf_counter()
        report[name] = figures(PEERS[name], Path(folder).resolve(), asked.samples, asked.only, saved.get(name, {}))
        print(f"{PEERS[name].repository}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if not asked.json:
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    if asked.json:
        print(json.dumps(report, indent=1))
        return
    write_page(report)
    print(table(report))
    print(costs_table(report))


if __name__ == "__main__":
    main()
