"""yks23/Information-Gain-Sampler: its EB-Sampler, `src/generators/eb_sampler.py`."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import Tensor

from ..case import Case, load, stand_in
from ..oracle import LENGTH, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    stand_in("src", clone / "src")
    stand_in("src.generators", clone / "src" / "generators")
    load(clone / "src" / "generators" / "base.py", "src.generators.base")
    module = importlib.import_module("src.generators.eb_sampler")

    def run(model: Answers, batch: int) -> Tensor:
        assert batch == 1
        options = {"gen_length": LENGTH, "temperature": 1.0, "mask_id": model.mask_id}
        return module.generate_with_eb_sampler(model, model.prompt(batch), gamma=0.5, **options)

    return [Case("γ = 0.5", "entropy-bound:gamma=0.5", run, batched=False)]
