"""What a trace looks like, before it is drawn: cells with texts, steps and candidates, and their colours."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from ..sampling.result import Event, Result
from .layout import Layout

COLORS: dict[str, tuple[str, ...]] = {
    "when": ("#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"),
    "entropy": ("#fff4d6", "#fed98e", "#fbab5c", "#f0713f", "#cf3d3f", "#931a4a", "#4f0d48"),
    "probability": ("#0b2c5f", "#1f4e8c", "#3472b4", "#5f97cf", "#92bce3", "#c3daf1", "#e9f2fb"),
}
"""What cells can be coloured by, and the colours from the lowest value to the highest."""

RGB = tuple[int, int, int]
INK: RGB = (20, 22, 26)
WHITE: RGB = (255, 255, 255)

_VISIBLE = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_HIDDEN = re.compile(r"\s|[^ -~]")


def visible(text: str) -> str:
    """Returns a token's text with a sign for everything that would not be seen: spaces, line ends, no text at all."""

    def sign(match: re.Match[str]) -> str:
        character = match.group()
        unseen = unicodedata.category(character)[0] in "CZ"
        return _VISIBLE.get(character) or (f"U+{ord(character):04X}" if unseen else character)

    return _HIDDEN.sub(sign, text) or "∅"


def _rgb(text: str) -> RGB:
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def shade(color: str, share: float) -> RGB:
    """The colour of a scale of `COLORS` between its low end, 0, and its high end, 1."""
    stops = [_rgb(stop) for stop in COLORS[color]]
    place = share * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(*stops[low : low + 2], strict=True))
    return red, green, blue


def _luminance(*rgb: int) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@dataclass(frozen=True)
class Cell:
    """One position of the sequence.

    Attributes:
        position: Which.
        text: Its final token, everything visible; empty if it is still masked.
        step: When it was unmasked, counted from 1; 0 if the prompt gave it, `None` if it is still masked.
        ends_line: Whether a line of text ends with it.
        event: How it was unmasked, if it was.
        candidates: The texts and probabilities of the most probable tokens then, if they were kept.
        drawn: Which of the candidates it became; `None` if none of them.
    """

    position: int
    text: str
    step: int | None
    ends_line: bool
    event: Event | None
    candidates: tuple[tuple[str, float], ...]
    drawn: int | None


@dataclass(frozen=True)
class Scene:
    """One sequence's trace.

    Attributes:
        title: What it shows.
        caption: How it was made, in a line.
        layout: Where the cells are drawn.
        cells: One for each position of the layout.
        bounds: The sum of `ΣH - max H` over the steps so far, in nats: 0 before the first.
        color: What cells are coloured by: one of `COLORS`.
    """

    title: str
    caption: str
    layout: Layout
    cells: tuple[Cell, ...]
    bounds: tuple[float, ...]
    color: str

    @property
    def steps(self) -> int:
        """Number of evaluations."""
        return len(self.bounds) - 1

    @property
    def highest_entropy(self) -> float:
        """The largest entropy of a marginal, in nats; 0 if nothing was unmasked."""
        return max((cell.event.entropy for cell in self.cells if cell.event), default=0.0)

    @staticmethod
    def of(
        result: Result,
        sequence: int,
        decode: Callable[[int], str],
        layout: Layout,
        title: str,
        caption: str,
        color: str,
    ) -> Scene:
        """Collects what is to be drawn.

        Raises:
            ValueError: If the run kept no trace, the layout does not fit the sequence, or there is no such colouring.
            IndexError: If there is no such sequence.
        """
        if color not in COLORS:
            raise ValueError(f"unknown color {color!r}; choose one of {', '.join(COLORS)}")
        events = {event.position: event for event in result.trace(sequence)}
        tokens = result.sequences[sequence]
        pending = result.pending[sequence].tolist()
        layout = layout.fit(len(tokens))
        cells = []
        for position in layout.positions or ():
            masked = pending[position]  # perhaps again
            event = None if masked else events.get(position)
            candidates = event.candidates if event else ()
            text = "" if masked else decode(tokens[position])
            cells.append(
                Cell(
                    position,
                    "" if masked else visible(text) if layout.columns is None else text,
                    None if masked else event.step if event else 0,
                    "\n" in text,
                    event,
                    tuple((visible(decode(token)), p) for token, p in candidates),
                    next((i for i, (token, _) in enumerate(candidates) if token == tokens[position]), None),
                )
            )
        bounds = accumulate(result.bounds[sequence], initial=0.0)
        return Scene(title, caption, layout, tuple(cells), tuple(bounds), color)

    def share(self, cell: Cell, color: str) -> float:
        """Where a cell that was unmasked lies on a scale of `COLORS`: 0 at its low end, 1 at its high end."""
        if cell.event is None:
            return 0.0
        if color == "when":
            return (cell.event.step - 1) / max(1, self.steps - 1)
        if color == "entropy":
            return cell.event.entropy / self.highest_entropy if self.highest_entropy else 0.0
        return min(1.0, cell.event.probability)

    def paint(self, cell: Cell, color: str) -> tuple[RGB, RGB]:
        """The fill of a cell that was unmasked, and black or white, whichever is easier to read on it."""
        red, green, blue = shade(color, self.share(cell, color))
        light = _luminance(red, green, blue) > 0.18  # there the contrasts with black and with white are equal
        return (red, green, blue), INK if light else WHITE

    def scale(self, color: str) -> tuple[str, str]:
        """What the two ends of a scale of `COLORS` stand for."""
        return {
            "when": ("evaluation 1", f"{max(1, self.steps)}"),
            "entropy": ("0", f"{self.highest_entropy:.3g} nats"),
            "probability": ("p = 0", "1"),
        }[color]
