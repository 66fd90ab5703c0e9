"""Runs programs that a model wrote, in a separate process with limits on time, memory and file size.

These limits do not make untrusted programs safe. A program runs as the user who runs the evaluation: it can read files
and use the network. Evaluate models that you do not trust in a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_DONE = 87
"""The exit status of a program that ran to its end; a program that ends earlier has another status."""

_FILE_BYTES = 1 << 24

_RUNNER = """\
import os, resource, sys
cpu, memory, size, done = (int(number) for number in sys.argv[1:5])
limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: size, resource.RLIMIT_CORE: 0}
for kind, most in limits.items():
    resource.setrlimit(kind, (most, most))
with open(sys.argv[5], encoding="utf-8") as stream:
    source = stream.read()
exec(compile(source, "program", "exec"), {"__name__": "program"})
os._exit(done)
"""


@dataclass(frozen=True)
class Ran:
    """The result of a program.

    Attributes:
        passed: Whether it ran to its end without an error.
        reason: Why it did not: the last line of its error output, or the limit that it reached.
    """

    passed: bool
    reason: str = ""


def run_program(source: str, *, seconds: float = 5.0, memory: int = 1 << 30) -> Ran:
    """Runs a Python program that a model wrote.

    The program runs in a new interpreter without the environment variables, site-packages or standard input of this
    one, in an empty temporary folder, with limits that the operating system enforces. A program that ends before its
    last line has not passed, whatever its exit status.

    Args:
        source: The program, including its tests.
        seconds: Wall-clock time after which it is killed, with all processes of its group.
        memory: Maximum address space, in bytes.

    Raises:
        ValueError: If a limit is not positive.
        OSError: If this system has no such limits (Windows), or no process can be started.
    """
    if not seconds > 0 or memory < 1:
        raise ValueError(f"limits must be positive, got {seconds} seconds and {memory} bytes")
    if os.name != "posix":
        raise OSError("programs are only run where their time and memory can be limited: on Linux and macOS")
    with tempfile.TemporaryDirectory(prefix="unmask-") as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        program = folder / "program.py"
        program.write_text(source, encoding="utf-8", errors="surrogatepass")
        limits = [str(number) for number in (int(seconds) + 1, memory, _FILE_BYTES, _DONE)]
        command = [sys.executable, "-I", "-S", "-B", "-c", _RUNNER, *limits, str(program)]
        with (folder / "errors").open("wb+") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=work,
                env={"HOME": str(work), "TMPDIR": str(work)},
                start_new_session=True,
            )
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if status == _DONE:
                return Ran(True)
            if status is None:
                return Ran(False, f"took more than {seconds:g} seconds")
            if status < 0:
                return Ran(False, f"killed by signal {signal.Signals(-status).name}")
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            return Ran(False, last[0][:200] if last else f"ended early with exit status {status}")
