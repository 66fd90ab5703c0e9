"""Orders, blocks and ends on a model that works out its answers; the tables of docs/working.md.

    python -m benchmarks.working endings    # what becomes of the ends, on test problems
    python -m benchmarks.working choose     # rules at several settings, on validation problems
    python -m benchmarks.working rules      # every named rule, on test problems
    python -m benchmarks.working render     # the tables, from the saved figures

Of the embedded model `working`, or another with `--model FOLDER`, at temperature 0. Every rule answers the
same problems, and is compared with one at a time by entropy in the same mode, problem by problem. `choose` takes of
each rule that several settings are tried of the one with the fewest evaluations that loses at most a point of right
results; where all lose more, the one with the most right results. Rows are kept in runs/results, so that an
interrupted run goes on. Figures go to docs/results/working.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from unmask.evaluation.runner import mean_ci95
from unmask.evaluation.store import Store
from unmask.evaluation.study import code_fingerprint, fingerprint
from unmask.language import Completion, LanguageModel
from unmask.models.registry import load
from unmask.rules.named import NamedRule
from unmask.rules.usual import usual_rule
from unmask.tasks.of_model import task_of
from unmask.tasks.working import Problem, WorkingTask

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "working.json"
PAGE = ROOT / "docs" / "working.md"
STORE = ROOT / "runs" / "results" / "working.jsonl"
MODEL = "working"
CHOICE, TEST = 100, 200
LOSS = 0.01
"""Of right results, what a chosen setting may lose on the validation problems."""

REFERENCE = "top1-entropy"
SETTINGS: dict[str, tuple[str, ...]] = {
    REFERENCE: ("",),
    "auto": ("",),
    "top1-confidence": ("",),
    "top1-margin": ("",),
    "uniform": ("",),
    "left-to-right": ("",),
    "speculative": ("draft=4",),
    "topk": ("k=2", "k=4"),
    "threshold": ("threshold=0.95", "threshold=0.8", "threshold=0.6"),
    "factor": ("factor=0.3", "factor=1"),
    "klass": ("threshold=0.9",),
    "entropy-bound": ("gamma=0.003", "gamma=0.01", "gamma=0.03", "gamma=0.1"),
    "carried-bound": ("epsilon=0.3", "epsilon=1"),
    "noisy-bound": ("gamma=0.1",),
    "dependence-bound": ("gamma=0.03", "gamma=0.1", "gamma=0.3"),
    "tempered-bound": ("gamma=0,epsilon=0.02,proxy=confidence", "gamma=0,epsilon=0.1,proxy=confidence"),
    "independence-test": ("epsilon=0.3",),
    "random-k": ("k=2",),
    "groups": ("sizes=1+1+2+4+8+16",),
    "dilated": ("",),
    "steps": ("steps=16",),
    "all": ("",),
    "first-hitting": ("",),
    "first-hitting-parallel": ("steps=16",),
    "first-hitting-extrapolated": ("steps=16",),
    "ancestral": ("steps=32",),
    "llada-quota": ("steps=16",),
    "maskgit": ("steps=16",),
    "moment": ("steps=16",),
    "upstream-gate": ("", "budget=entropy-bound:gamma=0.1", "budget=entropy-bound:gamma=0.1,beta=1"),
    "spaced": ("spacing=4,block=0",),
    "frechet": ("delta=0.25",),
    "hierarchy": ("low=0.4,high=0.9",),
    "credit": ("threshold=0.9",),
    "remdm": ("steps=16",),
    "p2": ("steps=8",),
    "wino": ("threshold=0.6,back=0.9",),
    "edit": ("threshold=0.7,edit=0.5",),
    "lookahead": ("depth=2",),
    "s2d2": ("draft=4",),
    "gibbs": ("sweeps=0.5",),
}
"""What is tried of each named rule: what its paper sets (docs/settings.md), or several values."""

CANVAS, BLOCKS = "full canvas", "blocks of 8"
FREE = ", ends not kept for last"
OPTIONS: dict[str, dict[str, Any]] = {
    CANVAS: {},
    BLOCKS: {"block_length": 8},
    CANVAS + FREE: {"end_last": False},
    BLOCKS + FREE: {"block_length": 8, "end_last": False},
}
RULES_IN = (BLOCKS + FREE, CANVAS + FREE)
"""The modes in which every rule is asked: those that every rule can be asked in."""
ENDINGS = (
    REFERENCE,
    "top1-confidence",
    "entropy-bound:gamma=0.01",
    "entropy-bound:gamma=0.1",
    "upstream-gate:budget=entropy-bound:gamma=0.1",
    "threshold:threshold=0.9",
    "upstream-gate:budget=threshold:threshold=0.9",
)
"""Rules that are asked in every mode, for what becomes of the ends."""


class Asked:
    """A model and problems of its task, and what is known of its answers already."""

    def __init__(self, name: str, split: str, count: int) -> None:
        model, task = load(name), task_of(name)
        assert isinstance(model, LanguageModel)
        assert isinstance(task, WorkingTask)
        self.name, self.model, self.canvas = name, model, task.canvas
        self.problems = task.problems(split, count)
        self.key = f"{fingerprint(name)} {code_fingerprint()} {split} {count}"
        self.store = Store(STORE)

    def row(self, rule: str, mode: str) -> dict[str, Any]:
        """What became of every problem under one rule in one mode."""
        key = f"{self.key} {mode} {rule}"
        if key not in self.store:
            began = time.perf_counter()
            answers = self.model.generate(
                [one.prompt for one in self.problems],
                rule=self._rule(rule).rule,
                max_new_tokens=self.canvas,
                batch_size=100,
                **OPTIONS[mode],
            )
            seconds = time.perf_counter() - began
            judged = [judge(asked, one) for asked, one in zip(self.problems, answers, strict=True)]
            self.store[key] = {name: [float(one[name]) for one in judged] for name in judged[0]} | {"seconds": seconds}
        found = self.store[key]
        right = sum(found["right"]) / len(found["right"])
        nfe = sum(found["nfe"]) / len(found["nfe"])
        print(f"{mode}, {rule}: right {right:.3f}, NFE {nfe:.2f}, {found['seconds']:.0f} s", flush=True)
        return found

    def _rule(self, text: str) -> NamedRule:
        return usual_rule(text, self.name, 0.0)


def judge(asked: Problem, one: Completion) -> dict[str, Any]:
    """What a response is worth, and what it cost."""
    lines = asked.steps(one.text)
    *text, end = one.steps
    return {
        "right": asked.right(one.text),
        "terse": not lines,
        "worked": asked.worked(one.text),
        "lines": len(lines),
        "sound": sum(lines),
        # Of the text's tokens, those that were written when its end was fixed already.
        "after_end": sum(step > end for step in text) if one.finish_reason == "end" else 0,
        "nfe": one.nfe,
        "tokens": one.new_tokens,
    }


def summary(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Means of a row, and its differences to another, problem by problem."""

    def of(name: str) -> torch.Tensor:
        return torch.tensor(found[name], dtype=torch.float64)

    difference = of("right") - torch.tensor(base["right"], dtype=torch.float64)
    lines, tokens, terse = float(of("lines").sum()), float(of("tokens").sum()), of("terse").bool()
    return {
        "right": mean_ci95(of("right")),
        "difference": mean_ci95(difference),
        "worked": mean_ci95(of("worked")),
        "terse": mean_ci95(of("terse")),
        "right_if_terse": float(of("right")[terse].mean()) if bool(terse.any()) else None,
        "right_if_not": float(of("right")[~terse].mean()) if not bool(terse.all()) else None,
        "sound_lines": float(of("sound").sum()) / lines if lines else None,
        "after_end": float(of("after_end").sum()) / tokens,
        "nfe": float(of("nfe").mean()),
        "nfe_per_token": float(of("nfe").sum()) / tokens,
        "ratio": sum(base["nfe"]) / sum(found["nfe"]),
        "seconds": found["seconds"],
    }


def rules_of(name: str) -> list[str]:
    """What is tried of a named rule."""
    return [f"{name}:{setting}" if setting else name for setting in SETTINGS[name]]


def choose(asked: Asked) -> dict[str, Any]:
    """The setting of each rule that several are tried of, in each of the two modes, by the validation problems."""
    chosen: dict[str, Any] = {"problems": len(asked.problems), "modes": {}}
    for mode in RULES_IN:
        base = asked.row(REFERENCE, mode)
        rows = []
        for name, settings in SETTINGS.items():
            if len(settings) == 1:
                continue
            tried = [{"rule": rule, **summary(asked.row(rule, mode), base)} for rule in rules_of(name)]
            good = [row for row in tried if row["difference"][0] >= -LOSS]
            best = min(good, key=lambda row: row["nfe"]) if good else max(tried, key=lambda row: row["right"][0])
            rows += [{**row, "chosen": row is best} for row in tried]
        chosen["modes"][mode] = rows
    return chosen


def rules(asked: Asked, chosen: dict[str, Any]) -> dict[str, Any]:
    """Every named rule in each of the two modes, on the test problems, at the setting that was chosen."""
    found: dict[str, Any] = {"problems": len(asked.problems), "modes": {}}
    for mode, rows in chosen["modes"].items():
        base = asked.row(REFERENCE, mode)
        texts = [row["rule"] for row in rows if row["chosen"]]
        texts += [rule for name in SETTINGS if len(SETTINGS[name]) == 1 for rule in rules_of(name)]
        found["modes"][mode] = [{"rule": rule, **summary(asked.row(rule, mode), base)} for rule in texts]
    return found


def endings(asked: Asked) -> dict[str, Any]:
    """A few rules in every mode, on the test problems, and one at a time by kind of problem."""
    rows = [
        {"rule": rule, "mode": mode, **summary(asked.row(rule, mode), asked.row(REFERENCE, mode))}
        for rule in ENDINGS
        for mode in OPTIONS
    ]
    return {"problems": len(asked.problems), "rows": rows, "kinds": {mode: kinds(asked, mode) for mode in OPTIONS}}


def kinds(asked: Asked, mode: str) -> dict[str, list[float]]:
    """Share right under the reference, half the width of its interval, and the number of each kind of problem."""
    found: dict[str, list[float]] = {}
    for one, right in zip(asked.problems, asked.row(REFERENCE, mode)["right"], strict=True):
        found.setdefault(one.kind, []).append(right)
    return {kind: [*mean_ci95(torch.tensor(found[kind])), len(found[kind])] for kind in sorted(found)}


def _share(value: tuple[float, float] | list[float], sign: str = "") -> str:
    return f"{100 * value[0]:{sign}.1f} ± {100 * value[1]:.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table_of_rules(found: dict[str, Any], mode: str) -> str:
    """Every named rule in one mode."""
    lines = [
        "| rule | right, % | to one at a time, points | working sound, % | NFE | per new token | times fewer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found["modes"][mode], key=lambda row: (row["difference"][0] < -LOSS, row["nfe"])):
        lines.append(
            f"| `{row['rule']}` | {_share(row['right'])} | {_share(row['difference'], '+')} | {_share(row['worked'])} |"
            f" {row['nfe']:.2f} | {row['nfe_per_token']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def table_of_endings(found: dict[str, Any]) -> str:
    """What becomes of the ends under a few rules in every mode."""
    lines = [
        "| rule | mode | right, % | to one at a time, points | terse, % | right if terse, % | if not, % | written after"
        " the end, % | NFE | times fewer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| `{row['rule']}` | {row['mode']} | {_share(row['right'])} | {_share(row['difference'], '+')} |"
            f" {_share(row['terse'])} |"
            f" {_percent(row['right_if_terse'])} | {_percent(row['right_if_not'])} | {_percent(row['after_end'])} |"
            f" {row['nfe']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def table_of_kinds(found: dict[str, Any]) -> str:
    """One at a time, by kind of problem."""
    modes = found["kinds"]
    lines = ["| kind | problems | " + " | ".join(f"{mode}: right, %" for mode in modes) + " |"]
    lines.append("|---|---|" + "---|" * len(modes))
    for kind, (*_, count) in modes[BLOCKS].items():
        shown = " | ".join(_share(rows[kind][:2]) for rows in modes.values())
        lines.append(f"| {kind} | {count} | {shown} |")
    return "\n".join(lines)


def tables(saved: dict[str, Any]) -> dict[str, str]:
    """The page's tables."""
    made = {}
    if "endings" in saved:
        made["working-endings"] = table_of_endings(saved["endings"])
        made["working-kinds"] = table_of_kinds(saved["endings"])
    if "rules" in saved:
        made["working-blocks"] = table_of_rules(saved["rules"], RULES_IN[0])
        made["working-canvas"] = table_of_rules(saved["rules"], RULES_IN[1])
    return {name: f"{table}\n\n{_said(name, saved)}" for name, table in made.items()}


def _said(name: str, saved: dict[str, Any]) -> str:
    """What a table was measured on."""
    if name in ("working-endings", "working-kinds"):
        return f"{saved['endings']['problems']} test problems."
    return f"{saved['rules']['problems']} test problems; settings chosen on {saved['choice']['problems']} others."


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["endings", "choose", "rules", "render"])
    parser.add_argument("--model", default=MODEL, help="name or folder of a language model of the task")
    parser.add_argument("--problems", type=int, help=f"default: {CHOICE} to choose, else {TEST}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if given.what == "choose":
        saved["choice"] = choose(Asked(given.model, "validation", given.problems or CHOICE))
    elif given.what != "render":
        asked = Asked(given.model, "test", given.problems or TEST)
        saved[given.what] = endings(asked) if given.what == "endings" else rules(asked, saved["choice"])
    if given.what != "render":
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, tables(saved))


if __name__ == "__main__":
    main()
