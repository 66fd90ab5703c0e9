"""Feng-Hong/WINO-DLLM: `LLaDA/decoding.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..case import Case, load
from ..enumerated import DRAWN, Tokens, by_draws, draws
from ..oracle import LENGTH, Answers

THRESHOLD, BACK = 0.5, 0.9
"""Those of its `generate.py`."""


@dataclass(frozen=True)
class Shadowed:
    """The model as WINO asks it: behind the text, for every position, what stands there given all the others."""

    model: Answers

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    def __call__(self, x: Tensor, **options: Any) -> SimpleNamespace:
        text = x[:, :LENGTH]
        return SimpleNamespace(logits=torch.cat([self.model(text).logits, shadows(self.model, text)], 1))


def shadows(model: Answers, x: Tensor) -> Tensor:
    """The logits of every position of one sequence given all the others."""
    hidden = x.repeat(LENGTH, 1).masked_fill(torch.eye(LENGTH, dtype=torch.bool), model.mask_id)
    return model.logits(hidden)[range(LENGTH), range(LENGTH)].unsqueeze(0)


@dataclass(frozen=True)
class Remasking:
    """WINO's step with its confidences of drawn tokens; the number is how many the step before has written."""

    says: str = DRAWN
    start: int = 30

    def step(self, model: Answers, tokens: Tokens, number: int) -> Iterator[tuple[Tokens, int, float]]:
        """One evaluation, for every combination of draws."""
        x = torch.tensor([tokens])
        rest = shadows(model, x)[0, :, : model.symbols].softmax(-1)
        for p, masks, drawn, chance in draws(model, tokens):
            sure = by_draws(p, drawn)
            written = (sure > THRESHOLD).nonzero().flatten().tolist() or [int(sure.argmax())]
            after = list(tokens)
            for index in written:
                after[masks[index]] = int(drawn[index])
            likely = {place: float(rest[place, tokens[place]]) for place in range(LENGTH) if place not in masks}
            doubted = sorted((place for place in likely if likely[place] < BACK), key=lambda place: likely[place])
            for place in doubted[: number - 1] if len(written) > 1 else []:
                after[place] = model.mask_id
            yield tuple(after), len(written), chance


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    module = load(clone / "LLaDA" / "decoding.py", "peer_wino")

    def run(model: Answers, batch: int) -> Tensor:
        assert batch == 1
        sizes = {"gen_length": LENGTH, "block_length": LENGTH}
        options = {"temperature": 1.0, "mask_id": model.mask_id, "threshold": THRESHOLD, "threshold_back": BACK}
        return module.decoding_wino(Shadowed(model), model.prompt(batch), **sizes, **options)[0]

    claims = f"wino:threshold={THRESHOLD},back={BACK}"
    return [Case(f"thresholds {THRESHOLD} and {BACK}", claims, run, batched=False, instead=Remasking())]
