"""The tables in the pages are those of the saved figures: nobody typed one in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tutorials import SAID

import unmask
from benchmarks import (
    attention,
    conditional,
    conversation,
    dependence,
    families,
    fleet,
    free_text,
    frontier_page,
    headline,
    high_order,
    infilling,
    language,
    masked_lms,
    numerics,
    performance,
    results,
    rounding,
    rules,
    serving,
    speculative,
    text_plane,
    working,
)
from benchmarks.pages import between, fill
from benchmarks.peers import page as peers
from unmask import Entropy, EntropyBound, Rule
from unmask.oracles import MarkovDenoiser
from unmask.rules.profile import Line, Profile

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
BEGIN = re.compile(r"<!-- ([\w-]+):begin -->")


def figures(name: str) -> Any:
    """Saved figures by the name of their file."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def no_plot(*args: Any) -> None:
    """Pictures are not compared."""


def test_every_table_of_every_page_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All marked places are emptied, and written again from the saved figures: one that nothing writes stays empty."""
    copies = {path.name: Path(shutil.copy(path, tmp_path)) for path in PAGES}
    for copy in copies.values():
        fill(copy, dict.fromkeys(BEGIN.findall(copy.read_text(encoding="utf-8")), "(nothing)"))
    for module in (
        attention,
        conditional,
        conversation,
        dependence,
        fleet,
        free_text,
        frontier_page,
        headline,
        infilling,
        numerics,
        peers,
        performance,
        results,
        rounding,
        rules,
        serving,
        text_plane,
    ):
        monkeypatch.setattr(module, "PAGE", copies[module.PAGE.name])
    monkeypatch.setattr(free_text, "THEORY", copies["dependence.md"])
    monkeypatch.setattr(infilling, "NUMERICS", copies["numerics.md"])
    monkeypatch.setattr(results, "plot_study", no_plot)
    monkeypatch.setattr(headline, "draw", no_plot)
    for module in (performance, text_plane):
        monkeypatch.setattr(module, "plot", no_plot)

    for module in (attention, conditional, dependence, fleet, infilling, performance, results, rules, serving):
        module.render()
    conversation.render(figures("conversation"))
    frontier_page.write_page(figures("frontier"))
    numerics.write_page(figures("numerics"))
    fill(copies["families.md"], {"families-blocks": families.table(figures("families-blocks"))})
    peers.write_page(figures("peers"))
    rounding.write_page(figures("rounding"))
    fill(copies["high-order.md"], {"high-order": high_order.table(figures("high-order"))})
    fill(copies["language.md"], language.tables(figures("language")))
    tried = [masked_lms.Tried(**one) for one in figures("masked_lms")["classes"]]
    fill(copies["language.md"], {"masked-lms": masked_lms.table(tried)})
    fill(copies["speculative.md"], {"speculative": speculative.table(figures("speculative")["rows"])})
    fill(copies["working.md"], working.tables(figures("working")))

    for path in PAGES:
        page, written = path.read_text(encoding="utf-8"), copies[path.name].read_text(encoding="utf-8")
        for name in BEGIN.findall(page):
            assert between(written, name) == between(page, name), f"{path.name}: {name} is not what was saved"
        assert written == page, path.name


def test_the_code_of_the_pages_runs():
    blocks = {path.name: CODE.findall(path.read_text(encoding="utf-8")) for path in PAGES[1:]}
    # The rules of extending.md are run, and tested, by test_contract.py; pages that print by test_tutorials.py.
    counts = {name: len(found) for name, found in blocks.items() if found and name not in SAID}
    assert counts == {"dependence.md": 1, "extending.md": 3, "language.md": 1, "settings.md": 1, "working.md": 1}
    model = MarkovDenoiser.lazy(symbols=2, stay=0.75)
    x = torch.full((20, 6), model.mask_id)
    given: dict[str, Any] = {"model": model, "x": x, "profile": Profile.empty(Line.of(6))}
    exec(blocks["dependence.md"][0], given)
    assert float(given["audit"].lost.mean()) == 0  # a profile of nothing draws nothing together
    tempered: dict[str, Any] = {"unmask": unmask, "model": model, "x": x, "rule": Rule(Entropy(), EntropyBound(0.5))}
    exec(blocks["settings.md"][0], tempered)
    # Planned and drawn at temperature 0.1: the chain stays where it is more surely than it should.
    assert float((tempered["result"].tokens[:, 1:] == tempered["result"].tokens[:, :-1]).double().mean()) > 0.9
    answers: dict[str, Any] = {}
    exec(blocks["language.md"][0], answers)
    assert [one.text for one in answers["answers"]] == ["47", "13"]
    worked: dict[str, Any] = {}
    exec(blocks["working.md"][0], worked)
    assert [one.finish_reason for one in worked["answers"]] == ["end"] * 3


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_a_page_opens_with_whom_it_is_for_and_what_they_will_be_able_to_do(path: Path):
    title, opening, *_ = path.read_text(encoding="utf-8").split("\n\n")
    assert title.startswith("# ")
    assert re.search(r"\b[Ff]or (whoever|people|chemists)\b", opening)
    assert re.search(r"\b[Yy]ou (will|can)\b", opening)


def test_the_pages_have_the_tables_they_are_known_for():
    """The test above compares what is marked; a page that lost its markers would have nothing to compare."""
    marked = {path.name: len(BEGIN.findall(path.read_text(encoding="utf-8"))) for path in PAGES}
    least = {
        "results.md": 15,
        "dependence.md": 9,
        "frontier.md": 7,
        "performance.md": 9,
        "language.md": 5,
    }
    least |= {
        "comparison.md": 1,
        "many-machines.md": 1,
        "numerics.md": 2,
        "families.md": 1,
        "high-order.md": 1,
        "speculative.md": 1,
        "working.md": 2,
    }
    assert {name: marked[name] for name in least if marked[name] < least[name]} == {}
