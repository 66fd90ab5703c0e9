"""What Ray costs, and that nothing is lost: `unmask generate --output` beside the same with `--engine ray`.

    python -m benchmarks.ray overhead --rows 20000     # the plain command and two workers, one after the other
    python -m benchmarks.ray faults --rows 10000       # a worker killed, the driver killed, the disk full

`overhead` wants a quiet machine, and rows enough for five minutes. It runs the plain command with two threads, then two
workers of one thread each, and tells the seconds of both. `faults` compares files byte for byte; the full disk is a
small file system in memory, which needs root (without, that part is left out).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

OPTIONS = ["--temperature", "1", "--batch-size", "8"]
RAY = ["--engine", "ray", "--workers", "2"]


def prompts(folder: Path, rows: int) -> Path:
    """Writes small sums, which the embedded model `chat` knows."""
    draw = random.Random(0)
    path = folder / "prompts.jsonl"
    lines = (json.dumps({"prompt": f"{draw.randrange(100)}+{draw.randrange(100)}="}) for _ in range(rows))
    path.write_text("\n".join(lines))
    return path


def command(source: Path, out: Path, *options: str) -> list[str]:
    """The command that answers the prompts."""
    base = [sys.executable, "-m", "unmask", "generate", "chat", "--input", str(source), "--output", str(out)]
    return [*base, *OPTIONS, *options, "--json"]


def timed(arguments: list[str], threads: int) -> dict[str, Any]:
    """Runs a command; returns its report with the seconds of the clock."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": seconds, "processor_of_the_command": spent, **json.loads(done.stdout)}


def overhead(folder: Path, rows: int) -> dict[str, Any]:
    """Times the plain command and the one with Ray, and compares what they wrote."""
    source = prompts(folder, rows)
    plain = timed(command(source, folder / "plain"), threads=2)
    shared = timed(command(source, folder / "shared", *RAY), threads=1)
    return {
        "rows": rows,
        "plain": plain,
        "ray": shared,
        "overhead": shared["clock"] / plain["clock"] - 1,
        "equal": same(folder / "plain", folder / "shared"),
        "load_before": os.getloadavg(),
    }


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = sorted(path.name for path in one.iterdir() if path.name != ".lock")
    if names != sorted(path.name for path in other.iterdir() if path.name != ".lock"):
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def faults(folder: Path, rows: int) -> dict[str, Any]:
    """Disturbs a run in every way, and compares it with one that nothing disturbed."""
    source = prompts(folder, rows)
    subprocess.run(command(source, folder / "plain"), check=True, capture_output=True)
    shards = len(list((folder / "plain").glob("part-*")))
    report: dict[str, Any] = {"rows": rows, "shards": shards}

    out = folder / "worker"
    process = subprocess.Popen(command(source, out, *RAY), stdout=subprocess.DEVNULL)
    _wait(out, shards // 4, process)
    _workers(process.pid)[0].kill()
    report["worker_killed"] = {"status": process.wait(), "equal": same(folder / "plain", out)}

    out = folder / "driver"
    process = subprocess.Popen(command(source, out, *RAY), stdout=subprocess.DEVNULL)
    _wait(out, shards // 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = len(list(out.glob("part-*")))
    done = subprocess.run(command(source, out, *RAY), check=True, capture_output=True, text=True)
    before = json.loads(done.stdout)["rows_before"]
    equal = same(folder / "plain", out)
    report["driver_killed"] = {"shards_before": held, "rows_before": before, "equal": equal}

    report["disk_full"] = _full(folder, source)
    return report


def _full(folder: Path, source: Path) -> dict[str, Any] | str:
    mount = folder / "small"
    mount.mkdir()
    size = sum(path.stat().st_size for path in (folder / "plain").iterdir()) // 2
    made = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        return "left out: no file system can be mounted here"
    try:
        failed = subprocess.run(command(source, mount / "out", *RAY), capture_output=True, text=True, check=False)
        held = len(list((mount / "out").glob("part-*")))
        shutil.copytree(mount / "out", folder / "full")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(command(source, folder / "full", *RAY), check=True, capture_output=True)
    said = failed.stderr.strip().splitlines()[-1]
    return {"said": said, "shards_before": held, "equal": same(folder / "plain", folder / "full")}


def _workers(driver: int) -> list[psutil.Process]:
    below = psutil.Process(driver).children(recursive=True)
    return [one for one in below if any("ray::MapWorker" in part for part in one.cmdline())]


def _wait(out: Path, shards: int, process: subprocess.Popen[bytes]) -> None:
    while len(list(out.glob("part-*"))) < shards:
        if process.poll() is not None:
            raise SystemExit("the run ended before it was disturbed: give more --rows")
        time.sleep(0.05)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", "faults"])
    parser.add_argument("--rows", type=int, default=10_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure = overhead if chosen.part == "overhead" else faults
        print(json.dumps(measure(Path(name), chosen.rows), indent=2))


if __name__ == "__main__":
    main()
