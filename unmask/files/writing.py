"""Writing files: never over an input, and at any moment the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .reading import reason


@contextlib.contextmanager
def replacing(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place, flushed to disk, if the block succeeds.

    A link is followed, and what it points to is replaced; permissions stay. A device or pipe, such as `/dev/stdout`, is
    written to.

    Args:
        path: The file to write.
        suffix: How the temporary name ends, for a library that looks at it.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}{suffix}")
    special = target.exists() and not target.is_file() and not target.is_dir()
    if special:
        import tempfile

        handle, name = tempfile.mkstemp(suffix=suffix)
        os.close(handle)
        temporary = Path(name)
    try:
        yield temporary
        if special:
            with target.open("wb") as stream:
                stream.write(temporary.read_bytes())
            return
        flush(temporary)
        if target.is_file():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment, even after a crash, it is the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_output(path: Path, content: bytes | str) -> None:
    """Writes what a command was asked for; compressed if the name ends in `.gz`. Text becomes UTF-8.

    Bytes that a reader kept as lone surrogates (see `unmask.files.reading.Line`) come out as they were.

    Raises:
        ValueError: If the file cannot be written; the message says why, and what would work.
    """
    raw = content.encode("utf-8", errors="surrogateescape") if isinstance(content, str) else content
    try:
        write_atomically(path, gzip.compress(raw) if path.suffix == ".gz" else raw)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {reason(error)}") from None


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Writes a figure of matplotlib; the suffix says the format, PNG where there is none.

    Raises:
        ValueError: If matplotlib does not know the format, or the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=path.suffix[1:].lower() or "png")
    write_output(path, buffer.getvalue())


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = (), made: Collection[str] = ()
) -> None:
    """Checks before the work that files can be written, are none of those that are read, and differ from each other.

    Args:
        outputs: The files to write, by the option that named them.
        inputs: The files that are read; those that do not exist do not matter, nor do `None`s.
        made: Options whose folders are made if they are missing.

    Raises:
        ValueError: If a file cannot be written there; the message names the option and says what would work.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    read = [Path(one) for one in inputs if one is not None and str(one) != "-"]
    for number, (option, path) in enumerate(given.items()):
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder; name a file in it, such as {option} {path}/NAME")
        folder = path.parent
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"cannot write {path}: {folder} is a file, not a folder")
        if not folder.is_dir() and option not in made:
            raise ValueError(
                f"cannot write {path}: there is no such folder as {folder}; make it first (mkdir -p {folder})"
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"cannot write {path}: its permissions forbid it; choose another file for {option}")
        special = path.exists() and not path.is_file()
        if not special and folder.is_dir() and not os.access(os.path.dirname(os.path.realpath(path)) or ".", os.W_OK):
            raise ValueError(f"cannot write {path}: the permissions of its folder forbid it; choose another folder")
        for one in read:
            if same(path, one):
                raise ValueError(f"{option} {path} is a file that is read; writing there would lose it: choose another")
        for other, before in list(given.items())[:number]:
            if not special and same(path, before):
                raise ValueError(f"{other} and {option} name the same file, {path}; choose two")


def same(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, links followed, or would be."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def flush(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Keeps a second process from working in the same folder, and removes what a killed one left half-written.

    Args:
        folder: The folder.
        doing: What such a process does, for the message: `"training"`.

    Raises:
        ValueError: If another process is working there.
    """
    with (folder / ".lock").open("w") as lock:
        with contextlib.suppress(ImportError):  # no fcntl on Windows
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is {doing} in {folder}") from error
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield
