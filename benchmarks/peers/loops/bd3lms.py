"""kuleshov-group/bd3lms: `diffusion.py`. It writes behind a first token, in the same block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor, nn

from ..case import Case, load, stand_in
from ..enumerated import Tokens, draws
from ..oracle import LENGTH, Answers
from .mdlm import ABSENT, without_init


@dataclass(frozen=True)
class Grid:
    """The ancestral sampler with the times of this code, `1 / (steps - 1)` apart, where a step takes off `1 / steps`.

    Each mask is written with probability `1 - s / t`. At the last time, 0, the weights of all tokens are infinite, and
    what still is a mask gets the first token.
    """

    steps: int
    says: str = "steps shorter than the grid's; the first token where the last one finds a mask"
    start: int = 0

    def step(self, model: Answers, tokens: Tokens, number: int) -> Iterator[tuple[Tokens, int, float]]:
        """One evaluation, for every combination of draws and of positions that are written."""
        if number == self.steps - 1:
            yield tuple(0 if token == model.mask_id else token for token in tokens), number + 1, 1.0
            return
        written = 1 / self.steps / (1 - number / (self.steps - 1))
        for _, masks, drawn, chance in draws(model, tokens):
            for chosen in itertools.product((False, True), repeat=len(masks)):
                after, weight = list(tokens), chance
                for place, token, one in zip(masks, drawn.tolist(), chosen, strict=True):
                    after[place] = token if one else model.mask_id
                    weight *= written if one else 1 - written
                yield tuple(after), number + 1, weight


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    for name in (*ABSENT, "metrics"):
        stand_in(name)
    stand_in("lightning", LightningModule=nn.Module)
    noise = load(clone / "noise_schedule.py", "noise_schedule").LogLinearNoise()
    module = load(clone / "diffusion.py", "peer_bd3lms")
    vars(module)["tqdm"] = iter

    def run(model: Answers, batch: int, steps: int, first_hitting: bool) -> Tensor:
        config = SimpleNamespace(
            algo=SimpleNamespace(name="bd3lm"),
            model=SimpleNamespace(length=LENGTH + 1),
            sampling=SimpleNamespace(first_hitting=first_hitting, kv_cache=False, nucleus_p=1.0, var_length=False),
        )
        told = without_init(
            module.Diffusion,
            model,
            backbone=lambda x, sigma, **options: nn.functional.pad(model(x[:, 1:]).logits, (0, 0, 1, 0)),
            block_size=LENGTH + 1,
            config=config,
            cross_attn=True,
            noise=noise,
            tokenizer=SimpleNamespace(bos_token_id=0),
        )
        return told._semi_ar_sampler(n_samples=batch, num_steps=steps, num_strides=1, seqlen=LENGTH + 1)[0][:, 1:]

    hitting = partial(run, steps=5000, first_hitting=True)
    grid = partial(run, first_hitting=False)
    return [
        Case("`first_hitting`", "first-hitting", hitting, batched=False),
        Case("ancestral, 4 steps", "ancestral:steps=4", partial(grid, steps=4), instead=Grid(4)),
        Case("ancestral, 64 steps", "ancestral:steps=64", partial(grid, steps=64)),
    ]
