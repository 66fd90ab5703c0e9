"""The `unmask` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .compare import compare
from .compose import compose
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .generate import chat, generate, infill
from .groups import grouped
from .law import law
from .profile import profile
from .schedule import schedule
from .serve import serve
from .solve import solve
from .trace import trace
from .train import train
from .tune import tune_command

app = typer.Typer(
    name="unmask",
    help="Samplers for masked diffusion models, proven to draw from the distribution they claim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"unmask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(demo)
app.command()(grouped(solve))
app.command()(grouped(compose))
app.command()(grouped(generate))
app.command()(grouped(chat))
app.command()(grouped(infill))
app.command()(grouped(serve))
app.command()(grouped(trace))
app.command()(grouped(law))
app.command()(grouped(compare))
app.command()(grouped(profile))
app.command()(schedule)
app.command("tune")(grouped(tune_command))
app.command()(doctor)
app.command("eval")(grouped(evaluate))
app.command()(train)
app.add_typer(bench, name="bench")
