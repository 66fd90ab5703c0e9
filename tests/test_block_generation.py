"""Generation in the blocks of the attention: the same answers with a cache and without, alone, in a batch, in a queue."""

from collections.abc import Sequence

import pytest
import torch
from block_layouts import CONFIGS, OPTIONS, SIZE, write_block_model
from layouts import MASK, VOCAB

import unmask
from unmask.language import LanguageModel
from unmask.models.pretrained.cache import Cached
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler
from unmask.sampling.queue import Pool

BLOCKS = sorted(set(CONFIGS) - {"illada"})
RULE, NEW = "entropy-bound:gamma=5", 7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {layout: model_of(tmp_path_factory.mktemp(layout), layout) for layout in CONFIGS}


def model_of(folder, layout: str) -> LanguageModel:
    """A tiny model; a sixth of all tokens end an answer, so that some leave a batch before others."""
    network = unmask.load(write_block_model(folder, layout), **OPTIONS.get(layout, {})).network
    return LanguageModel(network, VOCAB, MASK, end_ids=range(30, 36), max_length=64)


def prompts(count: int) -> list[list[int]]:
    """Prompts of 1 to 13 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 30, (1 + place % 13,), generator=generator).tolist() for place in range(count)]


def answers(model: LanguageModel, asked: Sequence[list[int]], **options) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and evaluations of each answer, with a stream of its own."""
    options = {"rule": RULE, "max_new_tokens": NEW, "temperature": 1.0, "end_last": False, **options}
    found = model.generate(asked, streams=range(len(asked)), **options)
    return [(one.tokens, one.nfe) for one in found]


def queued(model: LanguageModel, asked: Sequence[list[int]], slots: int) -> list[tuple[int, ...]]:
    """Answers through a few slots, each taken by the next sequence when it becomes free."""
    cached = Cached(model, "block-causal", slots)
    pool, sampler = Pool(cached), Sampler(cached, named_rule(RULE).rule)
    waiting, found = list(enumerate(asked)), {}
    while waiting or len(pool):
        while waiting and len(pool) < slots:
            number, prompt = waiting.pop(0)
            length = len(prompt) + NEW
            x = torch.tensor([[*prompt, *[MASK] * (NEW + -length % SIZE)]])
            position = torch.arange(x.shape[1]).unsqueeze(0)
            asks = (position >= len(prompt)) & (position < length)
            blocks = position.div(SIZE, rounding_mode="floor")
            pool.join(sampler, sampler.start(x, streams=[number], blocks=blocks, fill=asks, slots=[number]))
        pool.evaluate()
        for state in pool.leave():
            number = int(state.slot)
            found[number] = tuple(state.x[0, len(asked[number]) : len(asked[number]) + NEW].tolist())
            cached.forget([number])
    return [found[number] for number in range(len(asked))]


@pytest.mark.parametrize("layout", BLOCKS)
def test_the_cache_changes_no_answer(models, layout):
    asked = prompts(100)
    kept = answers(models[layout], asked, batch_size=25)
    assert kept == answers(models[layout], asked, batch_size=25, cache="none")
    assert len({tokens for tokens, _ in kept}) > 70
    assert len({nfe for _, nfe in kept}) > 3


@pytest.mark.parametrize("layout", BLOCKS)
def test_an_answer_does_not_depend_on_what_it_is_evaluated_with(models, layout):
    asked = prompts(100)
    alone = answers(models[layout], asked, batch_size=1)
    assert answers(models[layout], asked, batch_size=8) == alone


@pytest.mark.parametrize("layout", BLOCKS)
def test_nor_on_who_is_in_the_queue(models, layout):
    endless = LanguageModel(models[layout].network, VOCAB, MASK, max_length=64)
    asked = prompts(100)
    assert queued(endless, asked, 7) == [tokens for tokens, _ in answers(endless, asked, batch_size=25)]


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_nor_where_positions_look_both_ways(models, cache):
    options = {"cache": cache, "block_length": NEW}
    asked = prompts(100)
    alone = answers(models["illada"], asked, batch_size=1, **options)
    assert answers(models["illada"], asked, batch_size=8, **options) == alone
