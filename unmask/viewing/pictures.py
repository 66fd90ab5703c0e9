"""A trace as pictures: an animated GIF with a frame per evaluation, and a PNG strip of some of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling.result import Result
from .layout import Layout
from .scene import INK, RGB, WHITE, Scene, shade

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_LINE: RGB = (205, 207, 211)
_MASK: RGB = (232, 233, 235)
_SOFT: RGB = (95, 100, 109)
_ACCENT: RGB = (214, 51, 108)

# Pixels: a cell of a grid and a line of text, what surrounds a frame, the line below it; the widest text and strip.
_SIDE, _MARGIN, _FOOT, _TEXT, _STRIP = 40, 20, 34, 760, 1640


def check_pictures() -> None:
    """Raises `ImportError` if pillow, or matplotlib with its fonts, is not installed (extra `plot`)."""
    missing = [name for name, module in (("pillow", "PIL"), ("matplotlib", "matplotlib")) if find_spec(module) is None]
    if missing:
        raise ImportError(f'GIF and PNG need {" and ".join(missing)}: pip install "unmask[plot]"')


def trace_gif(
    result: Result,
    sequence: int,
    decode: Callable[[int], str],
    layout: Layout,
    title: str,
    caption: str = "",
    color: str = "when",
) -> bytes:
    """Returns a GIF: the prompt, then a frame per evaluation; the last one stays three times as long.

    See `trace_html` for the arguments and the other errors.

    Raises:
        ImportError: If pillow or matplotlib is not installed (extra `plot`).
    """
    painter = _Painter(Scene.of(result, sequence, decode, layout, title, caption, color))
    steps = painter.scene.steps
    frames = (painter.page([painter.frame(step)], 1).quantize() for step in range(steps + 1))
    milliseconds = round(1000 * min(0.7, max(0.1, 20 / max(1, steps))))
    duration = [milliseconds] * steps + [3 * milliseconds]
    out = io.BytesIO()
    next(frames).save(out, "GIF", save_all=True, append_images=frames, duration=duration, loop=0)
    return out.getvalue()


def trace_png(
    result: Result,
    sequence: int,
    decode: Callable[[int], str],
    layout: Layout,
    title: str,
    caption: str = "",
    color: str = "when",
    frames: int = 8,
) -> bytes:
    """Returns a PNG with up to `frames` pictures in rows: the prompt, the end, and evaluations evenly in between.

    See `trace_html` for the other arguments and errors.

    Raises:
        ImportError: If pillow or matplotlib is not installed (extra `plot`).
        ValueError: If `frames` is below 2.
    """
    if frames < 2:
        raise ValueError(f"a strip has at least 2 pictures, got {frames}")
    painter = _Painter(Scene.of(result, sequence, decode, layout, title, caption, color))
    steps = painter.scene.steps
    last = min(frames, steps + 1) - 1
    shown = [painter.frame(round(number * steps / max(1, last))) for number in range(last + 1)]
    out = io.BytesIO()
    painter.page(shown, max(1, _STRIP // shown[0].width)).quantize().save(out, "PNG", optimize=True)
    return out.getvalue()


@cache
def _font(size: int, style: str = "Sans") -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVu{style}.ttf"), size)


def _canvas(width: int, height: int) -> tuple[Image, ImageDraw]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), WHITE)
    return image, ImageDraw.Draw(image)


class _Painter:
    """Draws the steps of a scene, all in one size."""

    def __init__(self, scene: Scene) -> None:
        check_pictures()
        self.scene, self.layout = scene, scene.layout
        bounds, steps = scene.bounds, scene.steps
        self.notes = ["prompt"] + [
            f"evaluation {n} of {steps}   bound {bounds[n]:.3g} nats" for n in range(1, steps + 1)
        ]
        names = [round(_font(16).getlength(name)) + 10 for name in scene.layout.rows]
        self.left = max(names, default=0)
        longest = max((len(cell.text) for cell in scene.cells), default=0)
        self.size = 20 if longest < 2 else 17 if longest == 2 else 13

    @cached_property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Left, top, right and bottom of each cell, in pixels."""
        if (columns := self.layout.columns) is not None:
            places = [divmod(number, columns) for number in range(len(self.scene.cells))]
            corners = [(self.left + _SIDE * column, _SIDE * row) for row, column in places]
            return [(x, y, x + _SIDE, y + _SIDE) for x, y in corners]
        boxes, x, y = [], 0, 0
        for cell in self.scene.cells:
            width = round(_font(20, "SansMono").getlength(cell.text or "␣")) + 4
            if x and x + width > _TEXT:
                x, y = 0, y + _SIDE
            boxes.append((x, y + 4, x + width, y + _SIDE - 4))
            x += width + 2
            if cell.ends_line:
                x, y = 0, y + _SIDE
        return boxes

    def frame(self, step: int) -> Image:
        """One step, with its evaluation and the bound below."""
        rights, notes = [box[2] for box in self.boxes], [round(_font(16).getlength(note)) for note in self.notes]
        width, height = max(rights + notes), max((box[3] for box in self.boxes), default=0)
        cells, draw = _canvas(width + 4, height + 4)
        for number in range(len(self.scene.cells)):
            self._cell(draw, number, step)
        if self.layout.columns is not None:
            self._lines(draw, self.layout.columns)
        image, draw = _canvas(width + 2 * _MARGIN, height + _MARGIN // 2 + _FOOT)
        image.paste(cells, (_MARGIN, _MARGIN // 2))
        draw.text((_MARGIN, height + _MARGIN // 2 + _FOOT // 2), self.notes[step], _SOFT, _font(16), "lm")
        return image

    def _cell(self, draw: ImageDraw, number: int, step: int) -> None:
        cell, box = self.scene.cells[number], self.boxes[number]
        center, known = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), cell.step is not None and cell.step <= step
        fill, ink = self.scene.paint(cell, self.scene.color) if known and cell.event else (WHITE, INK)
        fresh = _ACCENT if cell.step == step and step else None
        if self.layout.columns is None:
            draw.rounded_rectangle(box, 4, fill if known else _MASK, fresh, 2)
            if known:
                draw.text(center, cell.text, ink, _font(20, "SansMono"), "mm")
            return
        draw.rectangle(box, fill, fresh, 4)
        if known:
            draw.text(center, cell.text, ink, _font(self.size, "Sans" if cell.step else "Sans-Bold"), "mm")
        else:
            draw.circle(center, 3, _LINE)
        if number in self.layout.marks:
            draw.text((box[0] + 5, box[1] + 4), self.layout.marks[number], ink, _font(12, "Sans-Bold"))

    def _lines(self, draw: ImageDraw, columns: int) -> None:
        rows = -(-len(self.scene.cells) // columns)
        thin = [(0, row, columns, 0) for row in range(rows + 1)] + [(x, 0, 0, rows) for x in range(columns + 1)]
        for lines, ink, width in ((thin, _LINE, 1), (self.layout.lines(), INK, 3)):
            for x, y, dx, dy in lines:
                start = (self.left + _SIDE * x, _SIDE * y)
                draw.line((start, (start[0] + _SIDE * dx, start[1] + _SIDE * dy)), ink, width)
        for row, name in enumerate(self.layout.rows):
            draw.text((self.left - 10, _SIDE * row + _SIDE // 2), name, _SOFT, _font(16), "rm")

    def page(self, frames: list[Image], columns: int) -> Image:
        """Frames in rows of so many, under the title and above the scale of the colours."""
        scene, (width, height) = self.scene, frames[0].size
        columns = min(columns, len(frames))
        head = 44 + 24 * bool(scene.caption)
        foot = head + height * -(-len(frames) // columns)
        image, draw = _canvas(width * columns, foot + 30)
        for y, text, ink, font in (
            (28, scene.title, INK, _font(20, "Sans-Bold")),
            (54, scene.caption, _SOFT, _font(15)),
        ):
            line = " ".join(text.split())
            while line and font.getlength(line) > width * columns - 2 * _MARGIN:
                line = line.removesuffix("…")[:-1] + "…"
            draw.text((_MARGIN, y), line, ink, font, "lm")
        for number, frame in enumerate(frames):
            image.paste(frame, (width * (number % columns), head + height * (number // columns)))
        low, high = scene.scale(scene.color)
        x, y = _MARGIN + round(_font(14).getlength(low)) + 8, foot + 13
        draw.text((_MARGIN, y), low, _SOFT, _font(14), "lm")
        for place in range(100):
            draw.line((x + place, y - 6, x + place, y + 6), shade(scene.color, place / 99))
        draw.text((x + 108, y), high, _SOFT, _font(14), "lm")
        return image
