"""Kamichanw/d2Cache: `src/generation/vanilla.py`."""

from __future__ import annotations

import importlib
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..case import Case, load, stand_in
from ..enumerated import DRAWN, Count, Loop, above, by_draws, by_entropy, quota, within
from ..oracle import LENGTH, SYMBOLS, Answers


def cases(clone: Path) -> list[Case]:
    """The ways to run it."""
    source = clone / "src"
    for name in ("src", "src.generation", "src.utils"):
        stand_in(name, clone / name.replace(".", "/"))
    sys.modules["src.utils"].__dict__.update(vars(load(source / "utils" / "common.py", "src.utils.common")))
    vars(sys.modules["src.utils"])["is_adapted_from_ar"] = lambda model: False
    stand_in("src.models", LLaDAModelLM=type("LLaDAModelLM", (), {}), DreamModel=type("DreamModel", (), {}))
    stand_in("src.models.dream")
    stand_in("src.models.dream.generation_utils", top_k_logits=None, top_p_logits=None)
    stand_in("src.third_party", get_token_freq=None)
    stand_in("src.cache", dCache=object)
    module = importlib.import_module("src.generation.vanilla")

    def run(model: Answers, batch: int, **options: Any) -> Tensor:
        os.environ["MASK_TOKEN_ID"] = str(model.mask_id)  # one of its files looks nowhere else
        prompt, sizes = model.prompt(batch), {"gen_length": LENGTH, "block_length": LENGTH}
        record = module.vanilla_generate(
            model, prompt, **sizes, temperature=1.0, mask_token_id=model.mask_id, **options
        )
        return record[-1].generated_tokens.reshape(batch, LENGTH)

    def drawn(label: str, claims: str, count: Count, says: str = DRAWN, **options: Any) -> Case:
        instead = Loop(says, by_draws, count)
        return Case(
            label, claims, partial(run, **options), largest=64, mixed=True, instead=instead
        )  # 20,000 take it minutes

    mates = math.log(SYMBOLS)
    entropies = partial(run, alg="entropy", gamma=0.5)
    own, by_confidence = f"{DRAWN}, takes off the last entropy", "entropy-bound:gamma=0.5,proxy=confidence"
    return [
        drawn("maskgit_plus, one at a time", "top1-confidence", quota(1, 1, 1, 1)),
        Case(
            "entropy, γ = 0.5",
            "entropy-bound:gamma=0.5",
            entropies,
            largest=64,
            mixed=True,
            instead=Loop("in a mixed batch, takes off the other texts' entropy", by_entropy, within(0.5, always=mates)),
            does_so="mixed",
        ),
        drawn("maskgit_plus, γ = 0.5", by_confidence, within(0.5, own=True), own, gamma=0.5),
        drawn("threshold 0.6", "threshold:threshold=0.6", above(0.6), threshold=0.6),
    ]
