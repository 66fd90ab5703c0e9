"""What the site says of rules is true of them, and it is said of every rule."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.oracles import exact_law, random_table
from unmask.rules.named import FAMILIES

SITE: dict[str, Any] = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "site" / "generate.py"))
SAID: dict[str, list[str]] = SITE["said"]()
TABLE = random_table(2, 4, 3)


def loss(name: str) -> float:
    """KL on the reference chain and on a table of four positions with little structure, the larger of both."""
    rule = SITE["_example"](name, FAMILIES[name])
    _, chain = SITE["_measured"](rule)
    return max(chain, exact_law(TABLE, rule, torch.full((4,), TABLE.mask_id)).kl)


def test_every_rule_has_a_formula_a_cost_a_status_and_a_source():
    assert set(SAID) == set(FAMILIES)
    assert set(SITE["_sources"]()) <= set(FAMILIES)
    assert all(len(said) == 3 and all(said) for said in SAID.values())
    assert {status for *_, status in SAID.values()} == {"exact", "approximate", "biased"}
    assert all(("biased" not in family.summary) or SAID[name][2] == "biased" for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", [name for name in FAMILIES if SAID[name][2] == "exact"])
def test_what_is_called_exact_draws_from_the_data(name: str):
    assert loss(name) < 1e-9


@pytest.mark.parametrize("name", [name for name in FAMILIES if SAID[name][2] == "biased"])
def test_what_is_called_biased_does_not(name: str):
    assert loss(name) > 1e-3


def test_a_page_that_leads_out_of_the_site_is_refused():
    class Page:
        class file:
            src_uri = "page.md"

    with pytest.raises(ValueError, match=r"configs/text\.yaml is not in the site"):
        SITE["on_page_content"]('<h1>A</h1><a href="../configs/text.yaml">x</a>', Page)
    shown = SITE["on_page_markdown"]("[card](../unmask/data/models/maze/README.md)", Page)
    assert shown == "[card](reference/cards.md#models-maze)"
    assert "{ #models-maze }" in SITE["cards"]()
