"""The command line: parse, call the library, print."""

from __future__ import annotations

import os
import sys

from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """Runs `unmask`; what a user got wrong is one line on standard error and exit status 1."""
    from ..errors import UnmaskError
    from .common import err, keep_memory

    keep_memory()
    try:
        app()
    except (UnmaskError, ValueError, OSError, ImportError) as error:
        if os.environ.get("UNMASK_DEBUG"):
            raise
        err.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _plain(error: Exception) -> str:
    from rich.markup import escape

    from ..files.reading import shown

    return escape(" ".join((shown(error) if isinstance(error, OSError) else str(error)).split("\n")))
