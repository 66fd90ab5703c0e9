"""Checks what a release would upload: `python .ci/dist.py dist` after `python -m build`; see `make release`."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHEEL = (
    "unmask/py.typed",
    "unmask/viewing/trace.html",
    "unmask/serving/page/app.js",
    "unmask/integrations/harness/gsm8k.yaml",
    *(f"unmask/data/sudoku/{name}" for name in ("model.safetensors", "config.json", "README.md", "demo.csv")),
    *(f"unmask/data/models/{name}/model.safetensors" for name in ("chat", "maze", "text", "working", "rxnmapper")),
)
"""Files that the wheel must have: one of each kind that is not Python."""

SDIST = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "docs/index.md", "tests/conftest.py")
"""Files that the source archive must have."""


def problems(names: list[str], needed: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Says what is missing among the files of an archive, and what does not belong there."""
    found = [f"{name} is missing" for name in needed if name not in names]
    strange = [name for name in names if not name.startswith(allowed) or "__pycache__" in name or name.endswith(".pyc")]
    return found + [f"{name} does not belong there" for name in strange]


def wheel_problems(path: Path) -> list[str]:
    """Checks the files of a wheel: the package, its data and its metadata, nothing else."""
    return problems(zipfile.ZipFile(path).namelist(), WHEEL, ("unmask/", "unmask-"))


def sdist_problems(path: Path) -> list[str]:
    """Checks the files of a source archive."""
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    parts = (
        "unmask/",
        "tests/",
        "benchmarks/",
        "docs/",
        "configs/",
        ".gitignore",
        "Makefile",
        "PKG-INFO",
        "mkdocs.yml",
    )
    return problems(names, SDIST, (*parts, "constraints", "CONTRIBUTING.md", *SDIST))


def version_problems(root: Path = ROOT) -> list[str]:
    """Checks that package, citation and changelog speak of the same version."""
    version = re.findall(r'__version__ = "(.+)"', (root / "unmask" / "__init__.py").read_text(encoding="utf-8"))
    cited = re.findall(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    headed = re.findall(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[:1]
    if version == cited == headed:
        return []
    return [f"unmask/__init__.py says {version}, CITATION.cff {cited}, CHANGELOG.md {headed}: they must agree"]


def main() -> None:
    """Prints every problem, and fails if there is one."""
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    found = version_problems() + wheel_problems(wheel) + sdist_problems(sdist)
    if found:
        sys.exit("\n".join(found))
    print(f"{wheel.name} and {sdist.name} hold what they should")


if __name__ == "__main__":
    main()
