"""ZHZisZZ/dllm: `dllm/core/samplers/mdlm.py` and `dllm/pipelines/dream/sampler.py`."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..case import Case, check, stand_in
from ..enumerated import DRAWN, Loop, by_draws, quota
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    check(clone / "dllm" / "core" / "samplers" / "mdlm.py")
    for name in ("dllm", "dllm.core", "dllm.pipelines", "dllm.pipelines.dream", "dllm.pipelines.dream.models"):
        stand_in(name, clone / name.replace(".", "/"))
    plain = importlib.import_module("dllm.core.samplers.mdlm")
    dream = importlib.import_module("dllm.pipelines.dream.sampler")

    def run(model: Answers, batch: int, **options: Any) -> Tensor:
        told = SimpleNamespace(mask_token_id=model.mask_id, bos_token_id=None, eos_token_id=-1)
        config = plain.MDLMSamplerConfig(temperature=1.0, max_new_tokens=LENGTH, block_size=LENGTH)
        sampler = plain.MDLMSampler(model, told)
        return sampler.sample(list(model.prompt(batch)), config, **{"steps": LENGTH, **options})[:, -LENGTH:]

    def run_dream(model: Answers, batch: int, alg: str) -> Tensor:
        told = SimpleNamespace(mask_token_id=model.mask_id, eos_token_id=-1)
        config = dream.DreamSamplerConfig(max_new_tokens=LENGTH, steps=LENGTH, alg=alg, right_shift_logits=True)
        return dream.DreamSampler(model, told).sample(list(model.prompt(batch)), config)[:, 1:]

    drawn = partial(Loop, DRAWN, by_draws)
    one, two = quota(1, 1, 1, 1), quota(2, 2)
    gradual = partial(run, remasking="random", stochastic_transfer=True)
    return [
        Case("low confidence, one at a time", "top1-confidence", run, largest=64, mixed=True, instead=drawn(one)),
        Case(
            "low confidence, two at a time",
            "topk:k=2,proxy=confidence",
            partial(run, steps=LENGTH // 2),
            largest=64,
            mixed=True,
            instead=drawn(two),
        ),
        Case("random, one at a time", "uniform", partial(run, remasking="random"), largest=64, mixed=True),
        Case("random, `stochastic_transfer`, 4 steps", "ancestral:steps=4", gradual, largest=64, mixed=True),
        Case("Dream, entropy", "top1-entropy", partial(run_dream, alg="entropy"), shift=True, largest=64, mixed=True),
        Case(
            "Dream, `maskgit_plus`",
            "top1-confidence",
            partial(run_dream, alg="maskgit_plus"),
            shift=True,
            largest=64,
            mixed=True,
            instead=drawn(one),
        ),
    ]
