"""How much less the likelihood estimate varies than one with independently drawn mask counts, at equal evaluations.

    python -m benchmarks.likelihood [--json]                       # on Markov chains, ten seconds
    python -m benchmarks.likelihood --model FOLDER --data TASK     # on a trained model and validation sequences

The baseline is the same code with one stratum: every evaluation draws its own mask count and its own mask. A ratio is
the variance of the baseline's mean over that of ours, given the sequence, summed over a few sequences; its standard
error comes from resampling the repeats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask import Denoiser, derive, first_hitting, nelbo, sample
from unmask.oracles import MarkovDenoiser, random_markov

_UNEVEN = torch.tensor([0.6, 0.2, 0.1, 0.1], dtype=torch.float64)

CHAINS: dict[str, tuple[MarkovDenoiser, int]] = {
    "stay 0.775, 4 symbols, correlation 0.7": (MarkovDenoiser.lazy(4, 0.775), 64),
    "stay 0.85, 4 symbols, correlation 0.8": (MarkovDenoiser.lazy(4, 0.85), 64),
    "stay 0.9, 8 symbols, correlation 0.89": (MarkovDenoiser.lazy(8, 0.9), 32),
    "stay 0.95, 4 symbols, correlation 0.93": (MarkovDenoiser.lazy(4, 0.95), 64),
    "stay 0.55, 4 symbols, correlation 0.4": (MarkovDenoiser.lazy(4, 0.55), 64),
    "random, 4 symbols": (random_markov(4, 0), 32),
    "independent, 4 symbols": (MarkovDenoiser(_UNEVEN, _UNEVEN.expand(4, -1)), 32),
}


@dataclass(frozen=True)
class Ratio:
    """Variances of two estimates of the same sequences, at equal evaluations.

    Attributes:
        ratio: Variance with independent counts over variance with stratified counts and disjoint masks.
        error: Its standard error.
        deviation: Standard deviation of our estimate, root mean square over the sequences, in nats.
        nelbo: Mean estimate, in nats per sequence.
    """

    ratio: float
    error: float
    deviation: float
    nelbo: float


def variance_ratio(
    denoiser: Denoiser,
    x: Int[Tensor, "batch length"],
    evaluations: int,
    repeats: int,
    *,
    maskable: Bool[Tensor, "batch length"] | None = None,
    batch_size: int = 8192,
    seed: int = 0,
) -> Ratio:
    """Repeats both estimates of each sequence and compares their variances.

    Args:
        denoiser: The model.
        x: Complete sequences.
        evaluations: Per estimate.
        repeats: Estimates of each kind per sequence.
        maskable: False at pinned tokens.
        batch_size: Masked sequences per evaluation of the model.
        seed: Of all of it.
    """

    def estimates(strata: int, count: int) -> Float[Tensor, "batch count"]:
        streams = [derive(seed, strata, row, repeat) for row in range(len(x)) for repeat in range(count)]
        found = nelbo(
            denoiser,
            x.repeat_interleave(count, 0),
            maskable=None if maskable is None else maskable.repeat_interleave(count, 0),
            strata=strata,
            replicates=1,
            streams=streams,
            batch_size=batch_size,
        )
        return found.nelbo.reshape(len(x), count)

    ours = estimates(evaluations, repeats)
    naive = estimates(1, repeats * evaluations).reshape(len(x), repeats, evaluations).mean(-1)
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(repeats, (2, 500, repeats), generator=generator)
    resampled = naive[:, pick[0]].var(-1).sum(0) / ours[:, pick[1]].var(-1).sum(0)
    return Ratio(
        ratio=float(naive.var(-1).sum() / ours.var(-1).sum()),
        error=float(resampled.std()),
        deviation=float(ours.var(-1).mean().sqrt()),
        nelbo=float(ours.mean()),
    )


def on_chains(sequences: int, evaluations: int, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Measures every chain, on sequences of its own."""
    for name, (chain, length) in CHAINS.items():
        x = sample(chain, torch.full((sequences, length), chain.mask_id), first_hitting(), seed=seed).tokens
        yield {"data": name, "tokens": length, **asdict(variance_ratio(chain, x, evaluations, repeats, seed=seed))}


def on_model(
    model: str, data: str, sequences: int, evaluations: int, repeats: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Measures a trained model on the first validation sequences of a task."""
    from unmask.models.registry import load
    from unmask.tasks.named import named_task

    examples = named_task(data).examples("validation")
    x, maskable = (torch.stack(rows) for rows in zip(*(examples[i] for i in range(sequences)), strict=True))
    found = variance_ratio(load(model), x, evaluations, repeats, maskable=maskable, batch_size=64, seed=seed)
    yield {"data": data, "tokens": x.shape[1], "model": model, **asdict(found)}


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or the name of an embedded model")
    parser.add_argument("--data", help="task whose validation sequences the model is judged on")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--evaluations", type=int, default=16, help="per estimate")
    parser.add_argument("--repeats", type=int, default=200, help="estimates of each kind per sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if (chosen.model is None) != (chosen.data is None):
        parser.error("--model and --data go together")
    torch.set_num_threads(1)
    common = (chosen.sequences, chosen.evaluations, chosen.repeats, chosen.seed)
    rows = on_chains(*common) if chosen.model is None else on_model(chosen.model, chosen.data, *common)
    kept = []
    for row in rows:
        kept.append(row)
        if not chosen.json:
            print(f"{row['data']:40s} variance ratio {row['ratio']:5.2f} ± {row['error']:.2f}", flush=True)
    if chosen.json:
        settings = {key: getattr(chosen, key) for key in ("sequences", "evaluations", "repeats", "seed")}
        print(json.dumps({"command": "python -m benchmarks.likelihood", **settings, "rows": kept}, indent=1))


if __name__ == "__main__":
    main()
