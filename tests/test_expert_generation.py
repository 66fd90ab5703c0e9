"""LLaDA2, BD3LM, LLaDA-MoE and MDLM: one answer with a cache and without, alone, in batches and in a queue."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dit_layouts
import expert_layouts
import pytest
from block_layouts import SIZE
from layouts import MASK, VOCAB
from test_block_generation import NEW, answers, prompts, queued

import unmask
from unmask.language import LanguageModel

FAMILIES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "llada2": (expert_layouts.write, {"mask_id": MASK, "block_causal": SIZE}),
    "bd3lm": (dit_layouts.write, {"mask_id": MASK}),
    "llada-moe": (expert_layouts.write, {"mask_id": MASK}),
    "mdlm": (dit_layouts.write, {"mask_id": MASK}),
}
"""Who writes a checkpoint, and what it is loaded with; the first two look at blocks."""
ASKED = prompts(100)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}
    for layout, (write, options) in FAMILIES.items():
        network = unmask.load(write(tmp_path_factory.mktemp(layout), layout), **options).network
        found[layout] = LanguageModel(network, VOCAB, MASK, end_ids=range(30, 36), max_length=64)
    return found


@pytest.mark.parametrize("cache", ["none", "block-causal"])
def test_answers_are_those_of_llada2s_own_generation(models, cache):
    model = LanguageModel(models["llada2"].network, VOCAB, MASK, max_length=64)
    for prompt, expected in json.loads((Path(__file__).parent / "data" / "expert-answers.json").read_text()):
        (found,) = model.generate([prompt], rule="topk:k=1,proxy=confidence", max_new_tokens=len(expected), cache=cache)
        assert list(found.tokens) == expected


@pytest.mark.parametrize("layout", ["llada2", "bd3lm"])
def test_the_cache_changes_no_answer(models, layout):
    kept = answers(models[layout], ASKED, batch_size=25)
    assert kept == answers(models[layout], ASKED, batch_size=25, cache="none")
    assert len({tokens for tokens, _ in kept}) > 70
    assert len({nfe for _, nfe in kept}) > 3


@pytest.mark.parametrize("layout", sorted(FAMILIES))
def test_an_answer_does_not_depend_on_what_it_is_evaluated_with(models, layout):
    options = {} if layout in ("llada2", "bd3lm") else {"block_length": NEW}
    alone = answers(models[layout], ASKED, batch_size=1, **options)
    assert answers(models[layout], ASKED, batch_size=8, **options) == alone


@pytest.mark.parametrize("layout", ["llada2", "bd3lm"])
def test_nor_on_who_is_in_the_queue(models, layout):
    endless = LanguageModel(models[layout].network, VOCAB, MASK, max_length=64)
    assert queued(endless, ASKED, 7) == [tokens for tokens, _ in answers(endless, ASKED, batch_size=25)]
