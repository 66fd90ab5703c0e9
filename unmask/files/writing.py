"""Writes files safely: never over an input, and so that there is always a complete file, the old one or the new one."""

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
    """Yields a temporary path; at the end of the `with` block, the file written there replaces `path`.

    The new file is flushed to the disk first, and gets the permissions of the old one. If the block raises, `path`
    stays as it was. If `path` is a link, the file that it points to is replaced; if it is a device or pipe, such as
    `/dev/stdout`, the content is written to it.

    Args:
        path: The file to write.
        suffix: The suffix of the temporary name, for libraries that depend on it.
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
    """Writes a file so that at any time, even after a crash, it has either its old or its new content."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_output(path: Path, content: bytes | str) -> None:
    """Writes the output of a command, compressed if the name ends in `.gz`. Text is encoded in UTF-8.

    Lone surrogates that stand for undecodable bytes (see `unmask.files.reading.Line`) become the original bytes.

    Args:
        path: The file; an existing file is replaced.
        content: The content.

    Raises:
        ValueError: If the file cannot be written; the message says why, and what would work.
    """
    raw = content.encode("utf-8", errors="surrogateescape") if isinstance(content, str) else content
    try:
        write_atomically(path, gzip.compress(raw) if path.suffix == ".gz" else raw)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {reason(error)}") from None


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Writes a figure of matplotlib; the suffix determines the format, which is PNG without a suffix.

    Args:
        path: The file; an existing file is replaced.
        figure: The figure.
        dpi: Dots per inch.

    Raises:
        ValueError: If matplotlib does not know the format, or the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=path.suffix[1:].lower() or "png")
    write_output(path, buffer.getvalue())


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = (), made: Collection[str] = ()
) -> None:
    """Checks, before any work is done, that files can be written, are not inputs, and differ from each other.

    Args:
        outputs: The files to write, by the options that name them.
        inputs: The files that are read; `None` and files that do not exist are ignored.
        made: Options whose folders will be made if they are missing.

    Raises:
        ValueError: If a file cannot be written. The message says why, and what would work.
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
                raise ValueError(
                    f"{option} {path} is a file that is read; writing to it would lose its content: choose another file"
                )
        for other, before in list(given.items())[:number]:
            if not special and same(path, before):
                raise ValueError(f"{other} and {option} name the same file, {path}; choose two different files")


def same(one: Path, other: Path) -> bool:
    """Returns whether two paths are the same file, after following links; the files need not exist."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def flush(path: Path) -> None:
    """Waits until the content of a file, or the list of names in a folder, is on the disk."""
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
