"""Generated tables in pages: each lies between two markers that name it."""

from __future__ import annotations

from pathlib import Path


def between(page: str, name: str) -> str:
    """Returns what a page has between the markers of `name`."""
    return page.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0].strip()


def fill(path: Path, tables: dict[str, str]) -> None:
    """Puts tables between their markers."""
    page = path.read_text(encoding="utf-8")
    for name, shown in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = page.split(begin)
        page = before + f"{begin}\n{shown}\n{end}" + rest.split(end)[1]
    path.write_text(page, encoding="utf-8")


def wall_clock(seconds: dict[str, dict[str, float]]) -> list[str]:
    """Sentences about seconds per prompt, by size of the batch, of a slow and a fast sampler."""
    lines = []
    for batch, found in seconds.items():
        (slow, before), (fast, after) = found.items()
        lines.append(
            f"\nWall-clock at batch {batch}, one thread: `{slow}` {1000 * before:.1f} ms a prompt, `{fast}`"
            f" {1000 * after:.1f} ms, {before / after:.1f} times less."
        )
    return lines
