"""The pictures that explain: the loop of sampling, and a dependence profile.

    python -m benchmarks.diagrams        # docs/img/loop.png, docs/img/profile-text.png

The second shows the profile that lies beside the shipped model `text`, as `unmask profile` measured it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unmask.dependence.picture import heat_map
from unmask.files.writing import write_figure
from unmask.rules.profile import load_profile
from unmask.viewing import drawing

IMAGES = Path(__file__).parent.parent / "docs" / "img"
KNOWN, MODEL, RULE, DRAW = "#eceff1", "#d1d9ff", "#ffe0b2", "#c5e1a5"


def loop(path: Path) -> None:
    """Draws the loop: look, choose, draw, until no mask is left."""
    pyplot = drawing.pyplot()
    figure, axes = pyplot.subplots(figsize=(9.2, 2.5), constrained_layout=True)
    axes.set_xlim(0, 46)
    axes.set_ylim(1.8, 13.6)
    axes.axis("off")
    boxes = [
        (0.3, "the sequence", "tokens and masks;\nwhat is known stays", KNOWN),
        (12.0, "the model", "one evaluation: what may\nstand at each mask", MODEL),
        (23.7, "the rule", "order: which masks first\nbudget: how many at once", RULE),
        (35.4, "the draw", "a token at each of them,\nindependently", DRAW),
    ]
    for left, title, said, colour in boxes:
        axes.add_patch(pyplot.Rectangle((left, 6.2), 10.3, 6.6, facecolor=colour, edgecolor="#455a64", linewidth=1.2))
        axes.text(left + 5.15, 11.1, title, ha="center", va="center", fontsize=12, fontweight="bold", color="#222222")
        axes.text(left + 5.15, 8.2, said, ha="center", va="center", fontsize=9.2, color="#222222")
    arrow = {"arrowstyle": "-|>", "color": "#455a64", "linewidth": 1.6, "mutation_scale": 14}
    for left, *_ in boxes[1:]:
        axes.annotate("", (left, 9.5), (left - 1.4, 9.5), arrowprops=arrow)
    axes.plot([40.5, 40.5, 5.4], [6.2, 2.6, 2.6], color="#455a64", linewidth=1.6)
    axes.annotate("", (5.4, 6.2), (5.4, 2.55), arrowprops=arrow)
    axes.text(23, 3.2, "again, while a mask is left", ha="center", va="bottom", fontsize=10.5, color="#222222")
    write_figure(path, figure, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Parses the command."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    loop(IMAGES / "loop.png")
    heat_map(
        load_profile("text"), IMAGES / "profile-text.png", "How much two characters of a text tell about each other"
    )


if __name__ == "__main__":
    main()
