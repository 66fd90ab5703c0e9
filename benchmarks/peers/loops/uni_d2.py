"""nkalyanv99/UNI-D2: `src/discrete_diffusion/sampling/eb_sampler.py`."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ..case import Case, check, stand_in
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    base = clone / "src" / "discrete_diffusion"
    check(base / "sampling" / "eb_sampler.py")
    stand_in("discrete_diffusion", base)
    stand_in("discrete_diffusion.sampling", base / "sampling")
    stand_in("discrete_diffusion.forward_process", base / "forward_process")
    stand_in("discrete_diffusion.utils", top_k_top_p_filtering=None)
    module = importlib.import_module("discrete_diffusion.sampling.eb_sampler")
    config = SimpleNamespace(sampling=SimpleNamespace(use_float64=True, p_nucleus=1.0))
    sampler = module.EBSampler(config, gamma=0.5)

    def run(model: Answers, batch: int) -> Tensor:
        told = SimpleNamespace(
            device=model.device,
            num_tokens=LENGTH,
            mask_id=model.mask_id,
            neg_infinity=-1e6,  # as its models say
            prior_sample=lambda count, length: torch.full((count, length), model.mask_id),
            forward=lambda x, sigma: model(x).logits,
        )
        return sampler.generate(told, num_samples=batch, num_steps=None, eps=0.0, inject_bos=False)

    return [Case("γ = 0.5", "entropy-bound:gamma=0.5", run)]
