"""huggingface/diffusers: `LLaDA2Pipeline` with `BlockRefinementScheduler`, from a clone or an unpacked wheel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ..case import Case, check, import_from
from ..enumerated import DRAWN, Loop, above, by_draws, quota
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    source = clone / "src" if (clone / "src" / "diffusers").is_dir() else clone
    check(source / "diffusers" / "schedulers" / "scheduling_block_refinement.py")
    library = import_from(source, "diffusers")

    def run(model: Answers, batch: int, threshold: float = 1.0) -> Tensor:
        pipeline = library.LLaDA2Pipeline(model, library.BlockRefinementScheduler())
        pipeline.set_progress_bar_config(disable=True)
        sizes = {"gen_length": LENGTH, "block_length": LENGTH, "num_inference_steps": LENGTH}
        prompt = model.prompt(batch)
        options = {"temperature": 1.0, "threshold": threshold, "editing_threshold": None, "output_type": "seq"}
        return pipeline(input_ids=prompt, mask_token_id=model.mask_id, **sizes, **options).sequences

    return [
        Case(
            "threshold 1, one at a time",
            "top1-confidence",
            run,
            largest=64,
            instead=Loop(DRAWN, by_draws, quota(1, 1, 1, 1)),
        ),
        Case(
            "threshold 0.6",
            "threshold:threshold=0.6",
            partial(run, threshold=0.6),
            largest=64,
            instead=Loop(DRAWN, by_draws, above(0.6)),
        ),
    ]
