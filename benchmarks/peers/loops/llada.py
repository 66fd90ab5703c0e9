"""ML-GSAI/LLaDA: `generate.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ..case import Case, load
from ..enumerated import DRAWN, Loop, by_draws, quota
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    module = load(clone / "generate.py", "peer_llada")

    def run(model: Answers, batch: int, remasking: str = "low_confidence", steps: int = LENGTH) -> Tensor:
        prompt, sizes = model.prompt(batch), {"gen_length": LENGTH, "block_length": LENGTH}
        options = {"temperature": 1.0, "remasking": remasking, "mask_id": model.mask_id}
        return module.generate(model, prompt, steps=steps, **sizes, **options)[:, -LENGTH:]

    return [
        Case(
            "low confidence, one at a time",
            "top1-confidence",
            run,
            mixed=True,
            instead=Loop(DRAWN, by_draws, quota(1, 1, 1, 1)),
        ),
        Case(
            "low confidence, two at a time",
            "topk:k=2,proxy=confidence",
            partial(run, steps=LENGTH // 2),
            mixed=True,
            instead=Loop(DRAWN, by_draws, quota(2, 2)),
        ),
        Case("random, one at a time", "uniform", partial(run, remasking="random"), mixed=True),
    ]
