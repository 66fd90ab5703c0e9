"""kuleshov-group/mdlm: `diffusion.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ..case import Case, load, stand_in
from ..oracle import LENGTH, Answers

ABSENT = ("hydra", "hydra.utils", "dataloader", "models", "utils")


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    for name in ABSENT:
        stand_in(name)
    stand_in("lightning", LightningModule=nn.Module)
    stand_in("torchmetrics", aggregation=SimpleNamespace(MeanMetric=object))
    noise = load(clone / "noise_schedule.py", "noise_schedule").LogLinearNoise()
    module = load(clone / "diffusion.py", "peer_mdlm")

    def run(model: Answers, batch: int, sampler: str) -> Tensor:
        config = SimpleNamespace(
            loader=SimpleNamespace(eval_batch_size=batch),
            model=SimpleNamespace(length=LENGTH),
            noise=SimpleNamespace(type="loglinear"),
            sampling=SimpleNamespace(noise_removal=True),
        )
        return without_init(
            module.Diffusion,
            model,
            config=config,
            noise=noise,
            sampler=sampler,
            backbone=lambda x, sigma: model(x).logits,
        )._sample(num_steps=4)

    claims = "ancestral:steps=4"
    return [Case(f"`{name}`, 4 steps", claims, partial(run, sampler=name)) for name in ("ddpm_cache", "ddpm")]


def without_init(kind: type[nn.Module], model: Answers, **attributes: Any) -> Any:
    """The group's `Diffusion`, whose `__init__` would build a network, with what its samplers look at."""
    told = object.__new__(kind)
    nn.Module.__init__(told)
    vars(told).update(
        device=model.device,
        dtype=model.dtype,
        mask_index=model.mask_id,
        neg_infinity=-1000000.0,
        parameterization="subs",
        time_conditioning=False,
        **attributes,
    )
    return told
