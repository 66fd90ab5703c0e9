"""NVlabs/Fast-dLLM: `llada/generate.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ..case import Case, load, stand_in
from ..enumerated import DRAWN, Loop, above, by_draws, quota
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    stand_in("model", clone / "llada" / "model")
    stand_in("model.modeling_llada", LLaDAModelLM=object)
    module = load(clone / "llada" / "generate.py", "peer_fast_dllm")

    def run(model: Answers, batch: int, threshold: float | None = None) -> Tensor:
        prompt, sizes = model.prompt(batch), {"gen_length": LENGTH, "block_length": LENGTH}
        options = {"temperature": 1.0, "mask_id": model.mask_id, "threshold": threshold}
        return module.generate(model, prompt, steps=LENGTH, **sizes, **options)[0]

    return [
        Case(
            "low confidence, one at a time",
            "top1-confidence",
            run,
            batched=False,
            instead=Loop(DRAWN, by_draws, quota(1, 1, 1, 1)),
        ),
        Case(
            "threshold 0.6",
            "threshold:threshold=0.6",
            partial(run, threshold=0.6),
            batched=False,
            instead=Loop(DRAWN, by_draws, above(0.6)),
        ),
    ]
