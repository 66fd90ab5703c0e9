"""Outside `rules/`, code takes rules by name or as they come: no module builds one of its own parts."""

import ast
import inspect
from pathlib import Path

import unmask
from unmask import rules

ROOT = Path(unmask.__file__).parent
ABSTRACT = {"Budget", "Clock", "Order", "Predictor", "Rule", "ScoredOrder", "Scored"}
"""What every rule made of parts has, or what a law asks for."""

ALLOWED = {
    ROOT / "__init__.py",  # the public names
    ROOT / "bench" / "step.py",  # times the EB-Sampler's step, with a gamma for each sequence
}


def concrete() -> set[str]:
    return {name for name in rules.__all__ if inspect.isclass(getattr(rules, name))} - ABSTRACT


def mentioned(source: str) -> set[str]:
    """The names that a module imports from a package `rules`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and "rules" in (node.module or "").split("."):
            found |= {alias.name for alias in node.names}
    return found & concrete()


def test_no_module_outside_rules_names_a_concrete_rule():
    files = [path for path in ROOT.rglob("*.py") if "rules" not in path.parts and path not in ALLOWED]
    assert len(files) > 100
    assert {str(path): names for path in files if (names := mentioned(path.read_text()))} == {}


def test_a_module_that_names_one_is_found():
    assert mentioned("from ..rules.order import Entropy\nfrom .rules import Rule, EntropyBound") == {
        "Entropy",
        "EntropyBound",
    }
