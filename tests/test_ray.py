"""Work carried out by Ray: the same rows and tables as on one machine, whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
from test_cli import run
from test_shards import OPTIONS, SHARDS, files_in, prompts_file, wait_for

from unmask.errors import UnmaskError
from unmask.fleet.cluster import Cluster
from unmask.fleet.over_ray import OverRay
from unmask.fleet.shards import Shards

RAY = ["--engine", "ray", "--workers", "2"]


@pytest.fixture(scope="module")
def cluster():
    """A cluster with no more slots than two workers take."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}  # a busy machine takes long
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def workers() -> list[psutil.Process]:
    """The processes of the workers, which are below this one."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if any("ray::MapWorker" in part for part in one.cmdline())]


def generate(prompts: Path, out: Path, *arguments: str) -> dict:
    options = ["--input", str(prompts), "--output", str(out), *OPTIONS, *SHARDS, *arguments, "--json"]
    said = run("generate", "chat", *options)
    return json.loads(said[said.index("{\n") :])  # Ray, which goes on here after the command, may print before it


def test_workers_that_are_killed_lose_and_double_nothing(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = prompts_file(tmp_path, 300)
    generate(prompts, tmp_path / "alone")
    killed = []
    write = Shards.write

    def writing(shards: Shards, number: int, rows: list) -> None:
        write(shards, number, rows)
        if len(list(shards.folder.glob("part-*"))) == 4:
            victim = workers()[0]
            victim.kill()
            killed.append(victim.pid)

    monkeypatch.setattr(Shards, "write", writing)
    report = generate(prompts, tmp_path / "shared", *RAY)
    assert killed
    assert report["rows_before"] == 0
    assert files_in(tmp_path / "shared") == files_in(tmp_path / "alone")


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_goes_on(cluster: str, tmp_path: Path):
    prompts, out = prompts_file(tmp_path, 120), tmp_path / "shared"
    generate(prompts, tmp_path / "alone")
    command = [sys.executable, "-m", "unmask", "generate", "chat", "--input", str(prompts), "--output", str(out)]
    process = subprocess.Popen([*command, *OPTIONS, *SHARDS, *RAY, "--address", cluster])
    wait_for(lambda: len(list(out.glob("part-*"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = generate(prompts, out)  # and without Ray, to the same rows
    assert 24 <= report["rows_before"] < 120
    assert files_in(out) == files_in(tmp_path / "alone")


@pytest.mark.parametrize("address", ["127.0.0.1:6", "ray://127.0.0.1:6", "nonsense"])
def test_a_cluster_that_cannot_be_reached_is_said_at_once(address: str):
    with pytest.raises(UnmaskError, match=rf"cannot reach a Ray cluster at {re.escape(address)} \(.*check the address"):
        Cluster(address)._connect()


def test_what_a_worker_cannot_do_is_said_in_a_line(cluster: str):
    def no_folder():
        raise UnmaskError("no model at '/only/here'")

    def no_extra():
        raise ImportError("transformers is missing")

    for make, words in (
        (no_folder, r"^worker on \S+: no model at '/only/here'$"),
        (no_extra, r"^worker on \S+: transformers is missing; install the same extras on every machine"),
    ):
        with pytest.raises(UnmaskError, match=words):
            list(OverRay(Cluster(workers=1))(make, [(0, "piece")]))


def test_no_room_for_a_worker_is_said(cluster: str):
    with pytest.raises(UnmaskError, match="no machine of the cluster has room for a worker of 1 cores and 1 GPUs"):
        list(OverRay(Cluster(gpus=1.0))(lambda: lambda piece: piece, [(0, "piece")]))
