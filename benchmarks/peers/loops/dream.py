"""Dream's `generation_utils.py`, which lies beside its weights: the copy in ZHZisZZ/dllm. It writes behind a token."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from ..case import Case, load
from ..enumerated import DRAWN, Loop, Score, by_draws, by_entropy, by_margin, quota
from ..oracle import LENGTH, Answers

LATE = quota(0, 1, 1, 2)
"""How many of four tokens four steps write: the quota is rounded down, and the last step writes what is left."""


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    module = load(clone / "dllm" / "pipelines" / "dream" / "models" / "generation_utils.py", "peer_dream")

    def run(model: Answers, batch: int, alg: str) -> Tensor:
        loop = module.DreamGenerationMixin()
        vars(loop).update(device=model.device, config=model.config, generation_config=SimpleNamespace())
        type(loop).__call__ = lambda self, x, *positions: model(x)
        ids = {"mask_token_id": model.mask_id, "bos_token_id": 0, "eos_token_id": -1, "pad_token_id": -1}
        options = {"temperature": 1.0, "alg": alg, "steps": LENGTH, "max_length": LENGTH + 1}
        config = module.DreamGenerationConfig(**ids, **options)
        return loop.diffusion_generate(model.prompt(batch), generation_config=config)[:, 1:]

    def ranked(alg: str, claims: str, says: str, score: Score) -> Case:
        instead = Loop(f"{says}, writes 0, 1, 1, 2", score, LATE)
        return Case(
            f"`{alg}`, a step per token", claims, partial(run, alg=alg), shift=True, mixed=True, instead=instead
        )

    return [
        Case("`origin`, 4 steps", "ancestral:steps=4", partial(run, alg="origin"), shift=True, mixed=True),
        ranked("entropy", "top1-entropy", "ranks by entropies", by_entropy),
        ranked("topk_margin", "top1-margin", "ranks by margins", by_margin),
        ranked("maskgit_plus", "top1-confidence", DRAWN, by_draws),
    ]
