"""A trace as one HTML page, with everything it needs inside: to step through, play, and ask every cell."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from ..sampling.result import Result
from .layout import Layout
from .scene import COLORS, RGB, Cell, Scene


def trace_html(
    result: Result,
    sequence: int,
    decode: Callable[[int], str],
    layout: Layout,
    title: str,
    caption: str = "",
    color: str = "when",
) -> str:
    """Returns a page that shows one sequence's trace, step by step.

    It loads nothing from elsewhere. The part after `#` opens it at a place: `#step=5&color=entropy&theme=dark&cell=40`.

    Args:
        result: A run with `trace=True`; with `candidates=5`, say, cells show what else they could have become.
        sequence: Which one.
        decode: Turns a token into text.
        layout: Where the positions are drawn.
        title: What is shown.
        caption: How it was made, in a line.
        color: What cells are coloured by at first: one of `COLORS`.

    Raises:
        ValueError: If the run kept no trace, the layout does not fit the sequence, or there is no such colouring.
        IndexError: If there is no such sequence.
    """
    scene = Scene.of(result, sequence, decode, layout, title, caption, color)
    # `<` and `&` are written as escapes, so that no token can end the script element or be read as markup.
    data = json.dumps(_data(scene), separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    page = resources.files("unmask").joinpath("viewing", "trace.html").read_text(encoding="utf-8")
    before, _, after = page.partition("<!--data-->")
    return before.replace("<!--title-->", html.escape(title)) + data + after


def _data(scene: Scene) -> dict[str, Any]:
    layout = scene.layout
    return {
        "title": scene.title,
        "caption": scene.caption,
        "color": scene.color,
        "columns": layout.columns,
        "lines": sorted(layout.lines()),
        "marks": layout.marks,
        "rows": layout.rows,
        "bounds": scene.bounds,
        "scales": {name: {"stops": stops, "ends": scene.scale(name)} for name, stops in COLORS.items()},
        "cells": [_cell(scene, cell) for cell in scene.cells],
    }


def _cell(scene: Scene, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {"position": cell.position, "text": cell.text, "step": cell.step, "ends": cell.ends_line}
    if cell.event is not None:
        paint = {name: [_css(part) for part in scene.paint(cell, name)] for name in COLORS}
        found |= {
            "probability": cell.event.probability,
            "entropy": cell.event.entropy,
            "candidates": cell.candidates,
            "drawn": cell.drawn,
            "paint": paint,
        }
    return found


def _css(rgb: RGB) -> str:
    return "#" + bytes(rgb).hex()
