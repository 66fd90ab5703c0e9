"""RadicalNumerics/RND1: `rnd/sampling.py`. It writes behind a first token."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ..case import Case, load
from ..enumerated import DRAWN, Loop, by_draws, within
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    module = load(clone / "rnd" / "sampling.py", "peer_rnd1")

    def run(model: Answers, batch: int, gamma: float | None = None) -> Tensor:
        assert batch == 1
        sizes = {"seq_len": LENGTH + 1, "num_steps": LENGTH if gamma is None else 4 * LENGTH}
        ids = {"mask_token_id": model.mask_id, "pad_token_id": -1, "eos_token_id": None, "bos_token_id": 0}
        return module.diffusion_sample(model, **sizes, **ids, greedy=False, eb_gamma=gamma)[:, 1:]

    return [
        Case("entropy, one at a time", "top1-entropy", run, batched=False, shift=True),
        Case(
            "γ = 0.5",
            "entropy-bound:gamma=0.5,proxy=confidence",
            partial(run, gamma=0.5),
            batched=False,
            shift=True,
            instead=Loop(DRAWN, by_draws, within(0.5)),
        ),
    ]
