"""A built wheel, alone in an empty environment outside the repository, solves puzzles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_runs_the_demo_elsewhere(tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("unmask-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "unmask/integrations/harness/gsm8k.yaml" in names
    for needed in ("model.safetensors", "config.json", "README.md", "demo.csv"):
        assert f"unmask/data/sudoku/{needed}" in names
    assert {"unmask/py.typed", "unmask/viewing/trace.html", "unmask/serving/page/app.js"} <= set(names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
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


def test_the_lower_bounds_are_the_releases_that_were_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = dict(one.split(">=") for one in [*project["dependencies"], *extras["train"], *extras["plot"]])
    pinned = dict(one.split("==") for one in (ROOT / "constraints-oldest.txt").read_text().splitlines()[1:])
    assert pinned.keys() == bounds.keys()
    for name, release in pinned.items():
        assert f"{release}.".startswith(f"{bounds[name]}."), f"{name}>={bounds[name]} is promised, {release} was run"
