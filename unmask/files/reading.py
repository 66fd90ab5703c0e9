"""Reads text files with any usual compression, encoding and line ends, with clear messages about what cannot be read.

All readers of this package use this module: those of puzzles, prompts, texts, tables of mazes and configuration files.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import DataError

STDIN = "-"
"""The path that stands for standard input."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # must come before UTF-16, because it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document: save it as text or CSV",
    b"BZh": "compressed by bzip2: unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: unpack it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it, or compress it by gzip",
    b"PAR1": "a Parquet table: write it as CSV or JSON Lines",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
}
_LINE_ENDS = re.compile(r"\r\n|\n|\r")
_HEAD = 4096


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: The number of the line, from 1.
        text: The text without its line end. Bytes that are not characters are lone surrogates (`surrogateescape`).
        fault: Why the line could not be decoded; empty if it could.
    """

    number: int
    text: str
    fault: str = ""


def reason(error: OSError) -> str:
    """Returns in plain words why a file could not be opened, read or written, and what would work."""
    advice = {
        errno.ENOENT: "check the name",
        errno.EISDIR: "name a file, not a folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EACCES: "choose another, or change its permissions",
        errno.EPERM: "choose another, or change its permissions",
        errno.EROFS: "choose another place",
        errno.ENOSPC: "free some, or choose another place",
        errno.ENAMETOOLONG: "choose a shorter one",
        errno.EEXIST: "choose another name, or move what is there",
    }
    said = error.strerror or str(error)
    return f"{said}; {advice[error.errno]}" if error.errno in advice else said


def shown(error: OSError) -> str:
    """Describes an error of the operating system in one line: the file, the reason, and what would work."""
    if error.errno is None:
        return str(error)
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names}: {reason(error)}" if names else reason(error)


def why(error: Exception) -> str:
    """Returns the reason of an error without the file's name, in plain words for errors of the operating system."""
    return reason(error) if isinstance(error, OSError) else str(error)


def unreadable(path: Path | str, what: str, error: OSError) -> DataError:
    """Returns the error for a file that cannot be opened; if it is a folder, the message names files in it.

    Args:
        path: The file.
        what: What the message calls its content, such as `"the puzzles"`.
        error: The error of the operating system.
    """
    why = reason(error)
    if isinstance(error, IsADirectoryError):
        inside = sorted(one.name for one in Path(path).iterdir() if one.is_file() and not one.name.startswith("."))
        files = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
        why = (
            f"it is a folder; name one of its files: {files}" if inside else "it is a folder without files; name a file"
        )
    return DataError(f"cannot read {what} {path}: {why}")


def read_text(path: Path | str, what: str = "the file", encoding: str | None = None) -> str:
    """Reads a whole text file, gzipped or not; byte order marks are dropped and line ends become `\\n`.

    Args:
        path: The file; `-` is standard input.
        what: What messages call its content.
        encoding: The encoding of the file. Default: that of its byte order mark; without one, UTF-16 if most bytes at
            even or at odd positions are 0, and UTF-8 if not.

    Raises:
        DataError: If the file cannot be read, is damaged or binary, or holds bytes that are not characters. The message
            names their line.
        ValueError: If there is no such encoding.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    return decode(read_bytes(path, what), name, encoding)


def read_bytes(path: Path | str, what: str = "the file") -> bytes:
    """Reads a whole file, and unpacks it if it is gzipped.

    Args:
        path: The file; `-` is standard input.
        what: What messages call its content.

    Raises:
        DataError: If the file cannot be read, or is damaged.
    """
    if str(path) == STDIN:
        return _unpacked(_stdin(), "standard input")
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, what, error) from None
    return _unpacked(raw, str(path))


def decode(raw: bytes, name: str, encoding: str | None = None) -> str:
    """Decodes the bytes of a text file, gzipped or not, as `read_text` does.

    Args:
        raw: The bytes.
        name: What messages call the file.
        encoding: As in `read_text`.

    Raises:
        DataError: As `read_text`.
        ValueError: If there is no such encoding.
    """
    check_encoding(encoding)
    raw = _unpacked(raw, name)
    known, skipped = _encoding(raw[:_HEAD], name, encoding)
    try:
        text = raw[skipped:].decode(known)
    except UnicodeDecodeError as error:
        before = raw[skipped : skipped + error.start].decode(known, errors="replace")
        line = len(_LINE_ENDS.findall(before)) + 1
        byte = f"byte {raw[skipped + error.start]:#04x}"
        raise DataError(f"{name} is not {_label(known)} text: {byte} in line {line}{_hint(encoding)}") from None
    return _LINE_ENDS.sub("\n", text)


def split_lines(text: str) -> list[str]:
    """Splits a text at its line ends.

    `str.splitlines` also splits at characters that are not line ends, such as U+2028, which JSON allows inside strings.
    """
    lines = _LINE_ENDS.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def read_lines(path: Path | str, what: str = "the file", encoding: str | None = None) -> Iterator[Line]:
    """Reads a file line by line, with little memory; a line that cannot be decoded has a `fault`, and reading goes on.

    Args:
        path: The file, gzipped or not; `-` is standard input.
        what: What messages call its content.
        encoding: See `read_text`.

    Raises:
        DataError: If the file cannot be read, or is damaged or binary.
        ValueError: If there is no such encoding.
    """
    check_encoding(encoding)
    name = "standard input" if str(path) == STDIN else str(path)
    with ExitStack() as stack:
        try:
            stream: IO[bytes] | gzip.GzipFile = (
                io.BytesIO(_stdin()) if str(path) == STDIN else stack.enter_context(open(path, "rb"))
            )
            if not stream.seekable():  # a pipe, such as the shell's <(...)
                stream = io.BytesIO(stream.read())
            if stream.read(2) == _GZIP:
                stream.seek(0)
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            else:
                stream.seek(0)
            head = stream.read(_HEAD)
            stream.seek(0)
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                raise DataError(f"{name} is a damaged gzip file: {error}") from None
            raise unreadable(path, what, error) from None
        except (EOFError, zlib.error) as error:
            raise DataError(f"{name} is a damaged gzip file: {error}") from None
        known, skipped = _encoding(head, name, encoding)
        stream.seek(skipped)
        try:
            if known.startswith(("utf-16", "utf-32")):
                text = decode(stream.read(), name, known)
                yield from (Line(number, line) for number, line in enumerate(split_lines(text), start=1))
                return
            number = 0
            for row in stream:
                fault = ""
                try:
                    text = row.decode(known)
                except UnicodeDecodeError as error:
                    fault = f"it is not {_label(known)} text: byte {row[error.start]:#04x}{_hint(encoding)}"
                    text = row.decode("utf-8", errors="surrogateescape")
                for part in split_lines(text):
                    number += 1
                    yield Line(number, part, fault)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{name} is a damaged gzip file: {error}") from None
        except OSError as error:
            raise unreadable(path, what, error) from None


def check_encoding(encoding: str | None) -> None:
    """Checks that an encoding of text exists; `None` is allowed.

    Raises:
        ValueError: If there is no such encoding.
    """
    try:
        if encoding is not None:
            "".encode(encoding)
    except (LookupError, ValueError):
        raise ValueError(
            f"unknown encoding {encoding!r}; usual ones are utf-8, latin-1, cp1252, utf-16, shift_jis, gb18030"
        ) from None


def _unpacked(raw: bytes, name: str) -> bytes:
    if not raw.startswith(_GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file: {error}") from None


def _stdin() -> bytes:
    buffer = getattr(sys.stdin, "buffer", None)
    return buffer.read() if buffer is not None else sys.stdin.read().encode("utf-8", errors="surrogateescape")


def _encoding(head: bytes, name: str, encoding: str | None) -> tuple[str, int]:
    """Returns the encoding of a file, from its beginning, and the length of its byte order mark."""
    marked = next(((known, len(mark)) for mark, known in _BOMS if head.startswith(mark)), None)
    if encoding is not None:
        plain = codecs.lookup(encoding).name
        if marked is not None and (plain in ("utf-8", "utf-8-sig", "utf-16", "utf-32") or plain == marked[0]):
            return marked
        return plain, 0
    if marked is not None:
        return marked
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{name} is not a text file: it is {kind}")
    if b"\0" not in head:
        return "utf-8", 0
    even, odd = head[::2].count(0), head[1::2].count(0)
    for known, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > len(head) // 4 and not others:
            return known, 0
    raise DataError(f"{name} is not a text file: it holds bytes of value 0, as binary files do")


def _label(encoding: str) -> str:
    return encoding.upper().replace("-LE", "").replace("-BE", "") if encoding.startswith("utf") else encoding


def _hint(encoding: str | None) -> str:
    if encoding is not None:
        return "; it is in another encoding, or damaged"
    return "; convert it to UTF-8, or give its encoding, such as --encoding latin-1 (for a task: encoding=latin-1)"
