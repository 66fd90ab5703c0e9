"""The page of the server as files: it is whole, it loads nothing from elsewhere, and every control of it has a name."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "unmask" / "serving" / "page"
FILES = sorted(PAGE.iterdir())
TEXT = {path.name: path.read_text(encoding="utf-8") for path in FILES}

NAMESPACE = "http://www.w3.org/2000/svg"
"""The one address that may stand in a file: it names SVG, and nobody loads it."""


class Elements(HTMLParser):
    """Collects the elements of a page: tag and attributes, and those each one is inside of."""

    EMPTY = frozenset({"input", "link", "meta", "br", "path", "rect", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element."""
        self.found.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element that holds nothing."""
        self.found.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        """Leaves an element."""
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag


ELEMENTS = Elements(TEXT["index.html"]).found
IDS = [attributes["id"] for _, attributes, _ in ELEMENTS if "id" in attributes]


@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_file_names_no_other_server(name: str):
    rest = TEXT[name].replace(NAMESPACE, "")
    assert re.findall(r"(?:https?:|wss?:|ftp:|data:\w+/|blob:)\S*|@import|[\"'(=]//", rest) == []


def test_everything_that_the_page_loads_is_there():
    used = {attributes[key] for _, attributes, _ in ELEMENTS for key in ("src", "href") if key in attributes}
    for name, text in TEXT.items():
        if name.endswith(".js"):
            used |= {found.removeprefix("./") for found in re.findall(r'^import .* from "(.+)";$', text, re.MULTILINE)}
    used.discard("#stage")
    assert used | {"index.html"} == set(TEXT)


def test_a_strict_content_security_policy_holds():
    """No script, style or handler stands in the page itself, and nothing makes code from strings."""
    for tag, attributes, _ in ELEMENTS:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    for name, text in TEXT.items():
        assert not re.search(
            r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|javascript:", text
        ), name


def test_every_control_has_a_label():
    labels = {attributes.get("for") for tag, attributes, _ in ELEMENTS if tag == "label"}
    controls = [one for one in ELEMENTS if one[0] in ("input", "select", "textarea")]
    assert len(controls) > 12
    for _, attributes, inside in controls:
        assert attributes.get("id") in labels or "label" in inside or attributes.get("aria-label"), attributes


def test_ids_are_unique_and_what_is_referred_to_exists():
    assert len(IDS) == len(set(IDS))
    referring = ("for", "aria-describedby", "aria-labelledby", "aria-controls")
    wanted = [attributes[name] for _, attributes, _ in ELEMENTS for name in referring if name in attributes]
    wanted += [name for text in TEXT.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)]
    assert len(wanted) > 30
    assert set(wanted) <= set(IDS)


def luminance(color: str) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (b / 255 for b in bytes.fromhex(color))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_scale_gets_steadily_darker_or_lighter():
    """So it is read without seeing hues; its ends are far enough apart to be told."""
    scales = re.findall(r"(\w+): \[(\"#[^\]]*)\]", TEXT["colours.js"])
    assert [name for name, _ in scales] == 2 * ["evaluation", "entropy", "probability"]
    for name, stops in scales:
        light = [luminance(stop) for stop in re.findall(r"#(\w{6})", stops)]
        assert light in (sorted(light), sorted(light, reverse=True)), name
        assert (max(light) + 0.05) / (min(light) + 0.05) > 7, name


def test_the_page_says_its_language_its_title_and_that_it_fits_a_phone():
    html = next(attributes for tag, attributes, _ in ELEMENTS if tag == "html")
    assert html["lang"] == "en"
    assert "<title>unmask</title>" in TEXT["index.html"]
    viewport = [
        attributes["content"]
        for tag, attributes, _ in ELEMENTS
        if tag == "meta" and attributes.get("name") == "viewport"
    ]
    assert viewport == ["width=device-width, initial-scale=1"]


def test_the_wheel_takes_the_whole_package():
    """Hatchling packs every file below it that git does not ignore; `test_package.py` looks into a wheel."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel == {"packages": ["unmask"]}
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    assert not any(path.match(pattern) for path in FILES for pattern in ignored)
