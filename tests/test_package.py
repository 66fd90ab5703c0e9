"""A built wheel, alone in an empty environment outside the repository, solves puzzles."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIST = runpy.run_path(str(ROOT / ".ci" / "dist.py"))


@pytest.mark.slow
def test_the_wheel_runs_the_demo_elsewhere(tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("unmask-*.whl")
    assert DIST["wheel_problems"](wheel) == []
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *constraints, str(wheel)]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(install, check=True, cwd=tmp_path, env=clean)
    command = [str(environment / "bin" / "unmask"), "demo", "--limit", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=clean)
    assert json.loads(done.stdout)["rows"][-1]["puzzles"] == 5


def test_an_archive_that_lacks_a_file_or_has_a_strange_one_is_refused(tmp_path: Path):
    wheel = tmp_path / "unmask-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*DIST["WHEEL"][1:], "unmask/__init__.py", "unmask-0.dist-info/METADATA"]:
            archive.writestr(name, "")
    assert DIST["wheel_problems"](wheel) == ["unmask/py.typed is missing"]
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("unmask/py.typed", "")
    assert DIST["wheel_problems"](wheel) == []
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tests/test_package.py", "")
    assert DIST["wheel_problems"](wheel) == ["tests/test_package.py does not belong there"]
    assert all((ROOT / name).is_file() for name in (*DIST["WHEEL"], *DIST["SDIST"]))


def test_versions_agree_or_are_refused(tmp_path: Path):
    assert DIST["version_problems"]() == []
    (tmp_path / "unmask").mkdir()
    for name in ("CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "unmask" / "__init__.py").write_text('__version__ = "99.0"\n')
    (problem,) = DIST["version_problems"](tmp_path)
    assert "must agree" in problem


def test_the_lower_bounds_are_the_releases_that_were_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = dict(one.split(">=") for one in [*project["dependencies"], *extras["train"], *extras["plot"]])
    pinned = dict(one.split("==") for one in (ROOT / "constraints-oldest.txt").read_text().splitlines()[1:])
    assert pinned.keys() == bounds.keys()
    for name, release in pinned.items():
        assert f"{release}.".startswith(f"{bounds[name]}."), f"{name}>={bounds[name]} is promised, {release} was run"
