"""`unmask law`: the exact law of a sampler on an oracle, and a test of the loop against it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from . import common


class OracleName(StrEnum):
    """Which exact denoiser."""

    TABLE = "table"
    MARKOV = "markov"
    HMM = "hmm"
    SUDOKU4 = "sudoku4"


def law(
    oracle: Annotated[OracleName, typer.Option(help="The exact denoiser.")] = OracleName.MARKOV,
    joint: Annotated[
        Path | None, typer.Option(help="table: a .npy file with a normalised joint of shape (V,)*L.")
    ] = None,
    oracle_seed: Annotated[int | None, typer.Option(help="table, markov, hmm: which random one (default 0).")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="table, markov, hmm: tokens (default 5).")] = None,
    symbols: Annotated[int | None, typer.Option(min=2, help="table, markov, hmm: alphabet size (default 3).")] = None,
    states: Annotated[int | None, typer.Option(min=1, help="hmm: hidden states (default 3).")] = None,
    stay: Annotated[
        float | None, typer.Option(help="markov: the lazy chain that keeps its symbol with this probability.")
    ] = None,
    rule: common.Rule = "entropy-bound",
    gamma: common.Gamma = None,
    k: common.K = None,
    threshold: common.Threshold = None,
    steps: common.StepsOption = None,
    proxy: common.Proxy = None,
    schedule: common.Schedule = None,
    temperature: common.Temperature = 1.0,
    samples: Annotated[int, typer.Option(min=0, help="Draw so many sequences and test them against the law.")] = 0,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Print a sampler's exact divergence from the data, its bound, and its expected evaluations.

    kl is KL(data || sampler) in nats and tv the total variation distance. bound is the expected sum over steps of
    (sum H - max H) over states visited under the data; kl never exceeds it at temperature 1, and at others it is no
    bound and not shown. nfe_mean is under the sampler's own law, nfe_mean_data under the data. pvalue: Pearson, drawn
    sequences against the exact law; too few of them give none.
    """
    from ..oracles import exact_law
    from ..sampler import sample
    from ..streams import derive

    named = common.rule_from(rule, gamma, k, threshold, steps, proxy, schedule)
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
        if value is not None and oracle not in where:
            given = f"--oracle {oracle.value}" + (" --joint" if joint else " --stay" if stay is not None else "")
            raise ValueError(f"{option} goes with {' or '.join(sorted(where)) or 'a random oracle'}, not with {given}")
    denoiser, width = _oracle(oracle, joint, oracle_seed or 0, length or 5, symbols or 3, states or 3, stay)
    x = torch.full((width,), denoiser.mask_id)
    exact = exact_law(denoiser, named.rule, x, temperature=temperature)
    report: dict[str, Any] = {
        "oracle": oracle.value,
        "length": width,
        "symbols": denoiser.symbols,
        "rule": named.name,
        "settings": named.settings,
        "temperature": temperature,
        "kl": exact.kl,
        "tv": exact.tv,
        "bound": exact.bound,
        "nfe_mean": exact.nfe_mean,
        "nfe_mean_data": exact.nfe_mean_data,
        "off_support": exact.off_support,
        "support": len(exact.points),
    }
    if samples:
        streams = [derive(seed, x.tolist(), copy) for copy in range(samples)]
        drawn = sample(denoiser, x.expand(samples, -1), named.rule, streams=streams, temperature=temperature)
        report |= {
            "samples": samples,
            "seed": seed,
            "pvalue": exact.pvalue(drawn.tokens),
            "nfe_mean_drawn": float(drawn.nfe.double().mean()),
        }
    if json:
        common.print_json(report)
        return
    common.out.print(
        f"{named} on {oracle.value}, {width} tokens of {denoiser.symbols} symbols, temperature {temperature:g}",
        highlight=False,
    )
    table = common.table("", "exact")
    units = {"kl": " nats", "bound": " nats"}
    for key in ("kl", "tv", "bound", "nfe_mean", "nfe_mean_data", "off_support", "nfe_mean_drawn", "pvalue"):
        if report.get(key) is not None and report[key] == report[key]:
            table.add_row(key, f"{report[key]:.6g}{units.get(key, '')}")
    common.out.print(table)


def _oracle(
    name: OracleName, joint: Path | None, seed: int, length: int, symbols: int, states: int, stay: float | None
) -> tuple[Any, int]:
    from .. import oracles

    if name is OracleName.SUDOKU4:
        return oracles.Sudoku4Denoiser(), 16
    if name is OracleName.HMM:
        return oracles.random_hmm(states, symbols, seed), length
    if name is OracleName.MARKOV:
        chain = oracles.random_markov(symbols, seed) if stay is None else oracles.MarkovDenoiser.lazy(symbols, stay)
        return chain, length
    if joint is None:
        return oracles.random_table(symbols, length, seed), length
    import numpy as np

    try:
        array = np.load(joint, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{joint} is no .npy file with a table of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{joint} must hold one array of real numbers in .npy format, got {kind}")
    table = oracles.TableDenoiser(torch.as_tensor(array))
    return table, table.length
