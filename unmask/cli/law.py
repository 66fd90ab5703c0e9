"""`unmask law`: the exact law of a sampler on an oracle, and a test of the loop against it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer

from ..rules.named import FAMILIES
from . import common
from . import oracle as options
from .groups import USUAL, RuleOptions


def law(
    oracle: options.Name = options.OracleName.MARKOV,
    joint: options.Joint = None,
    oracle_seed: options.OracleSeed = None,
    length: options.Length = None,
    symbols: options.Symbols = None,
    states: options.States = None,
    stay: options.Stay = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 1.0,
    samples: Annotated[int, typer.Option(min=0, help="Draw this many sequences and test them against the law.")] = 0,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Print a sampler's exact divergence from the data, its bound, and its expected evaluations.

    kl is KL(data || sampler) in nats and tv the total variation distance. bound is the expected sum over steps of
    (sum H - max H) over states visited under the data; kl never exceeds it at temperature 1. At other temperatures it
    is not a bound and is not shown. nfe_mean is the mean number of evaluations under the sampler's own law,
    nfe_mean_data under the data; evaluations_mean counts the states evaluated (a speculative rule evaluates several at
    once). pvalue is that of Pearson's test of the drawn sequences against the exact law; with too few of them there is
    none. Rules that read a dependence profile get one measured on 400 samples (seed 0).
    """
    from ..dependence.calibrate import oracle_profile
    from ..draws.streams import derive
    from ..oracles import exact_law
    from ..sampling.sample import sample

    denoiser, width = options.oracle_from(oracle, joint, oracle_seed, length, symbols, states, stay)
    family = FAMILIES.get(choice.name.partition(":")[0])
    own = oracle_profile(denoiser, width) if family is not None and "profile" in family.settings else None
    named = choice.named(own, temperature)
    x = torch.full((width,), denoiser.mask_id)
    with common.progress(quiet=json) as bar:
        bar.add_task("computing the exact law", total=None)
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
        "evaluations_mean": exact.evaluations_mean,
        "off_support": exact.off_support,
        "support": len(exact.points),
    }
    if samples:
        streams = [derive(seed, x.tolist(), copy) for copy in range(samples)]
        with common.progress(quiet=json) as bar:
            bar.add_task("drawing", total=None)
            drawn = sample(denoiser, x.expand(samples, -1), named.rule, streams=streams, temperature=temperature)
        report |= {
            "samples": samples,
            "seed": seed,
            "pvalue": exact.pvalue(drawn.tokens),
            "nfe_mean_drawn": float(drawn.nfe.double().mean()),
            "evaluations_mean_drawn": float(drawn.evaluations.double().mean()),
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
    keys = ("kl", "tv", "bound", "nfe_mean", "nfe_mean_data", "evaluations_mean", "off_support", "nfe_mean_drawn")
    for key in (*keys, "evaluations_mean_drawn", "pvalue"):
        if report.get(key) is not None and report[key] == report[key]:
            table.add_row(key, f"{report[key]:.6g}{units.get(key, '')}")
    common.out.print(table)
