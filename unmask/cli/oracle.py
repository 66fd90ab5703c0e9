"""The options by which commands name an oracle."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..files.reading import unreadable
from ..oracles.oracle import Oracle


class OracleName(StrEnum):
    """Which exact denoiser."""

    TABLE = "table"
    MARKOV = "markov"
    HMM = "hmm"
    SUDOKU4 = "sudoku4"


Name = Annotated[OracleName, typer.Option(help="The exact denoiser.")]
Joint = Annotated[Path | None, typer.Option(help="table: a .npy file with a normalised joint of shape (V,)*L.")]
OracleSeed = Annotated[int | None, typer.Option(help="table, markov, hmm: seed of the random oracle (default 0).")]
Length = Annotated[int | None, typer.Option(min=1, help="table, markov, hmm: tokens (default 5).")]
Symbols = Annotated[int | None, typer.Option(min=2, help="table, markov, hmm: alphabet size (default 3).")]
States = Annotated[int | None, typer.Option(min=1, help="hmm: hidden states (default 3).")]
Stay = Annotated[float | None, typer.Option(help="markov: a chain that keeps its symbol with this probability.")]


def oracle_from(
    name: OracleName,
    joint: Path | None,
    oracle_seed: int | None,
    length: int | None,
    symbols: int | None,
    states: int | None,
    stay: float | None,
) -> tuple[Oracle, int]:
    """Builds the oracle that the options describe, and returns it with the length of its sequences.

    Raises:
        ValueError: If an option does not apply to this oracle, or a file holds no joint table.
    """
    random = {OracleName.TABLE, OracleName.MARKOV, OracleName.HMM}
    options = {
        "--joint": (joint, {OracleName.TABLE}),
        "--stay": (stay, {OracleName.MARKOV}),
        "--states": (states, {OracleName.HMM}),
        "--oracle-seed": (oracle_seed, random if joint is None and stay is None else set()),
        "--length": (length, random if joint is None else set()),
        "--symbols": (symbols, random if joint is None else set()),
    }
    for option, (value, where) in options.items():
        if value is not None and name not in where:
            given = f"--oracle {name.value}" + (" --joint" if joint else " --stay" if stay is not None else "")
            raise ValueError(f"{option} goes with {' or '.join(sorted(where)) or 'a random oracle'}, not with {given}")
    from .. import oracles

    seed, width, alphabet = oracle_seed or 0, length or 5, symbols or 3
    if name is OracleName.SUDOKU4:
        return oracles.Sudoku4Denoiser(), 16
    if name is OracleName.HMM:
        return oracles.random_hmm(states or 3, alphabet, seed), width
    if name is OracleName.MARKOV:
        chain = oracles.random_markov(alphabet, seed) if stay is None else oracles.MarkovDenoiser.lazy(alphabet, stay)
        return chain, width
    if joint is None:
        return oracles.random_table(alphabet, width, seed), width
    import numpy as np

    try:
        array = np.load(joint, allow_pickle=False)
    except OSError as error:
        raise unreadable(joint, "the joint table", error) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{joint} is no .npy file with a table of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{joint} must hold one array of real numbers in .npy format, got {kind}")
    table = oracles.TableDenoiser(torch.as_tensor(array))
    return table, table.length
