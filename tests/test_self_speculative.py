"""Self-speculation gives the tokens of the autoregressive model, whatever is drafted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from block_layouts import CONFIGS, OPTIONS, SIZE, write_block_model
from conftest import tables
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import MASK, VOCAB

import unmask
from unmask import LeftToRight, One, Rule, TopK, sample
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.oracles import PerturbedDenoiser, exact_law, random_table
from unmask.rules import SelfSpeculative
from unmask.sampling.loop import Sampler
from unmask.sampling.pool import Pool

BLOCKS = sorted(set(CONFIGS) - {"illada"})


@settings(max_examples=40)
@given(
    tables(),
    st.integers(0, 5),
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from([{}, {"blocks": 2}, {"temperature": 0.0}, {"top_k": 2, "temperature": 0.7}]),
)
def test_without_blocks_the_tokens_are_those_of_left_to_right(oracle, draft, rows, draw):
    """Also with a model whose states contradict each other."""
    model, x = PerturbedDenoiser(oracle, 0.7), torch.tensor(rows)
    alone = sample(model, x, Rule(LeftToRight(), One()), seed=3, **draw)
    drafted = sample(model, x, SelfSpeculative(draft), seed=3, **draw)
    assert drafted.sequences == alone.sequences
    assert bool((drafted.nfe <= (2 if draft else 1) * alone.nfe).all())
    assert bool((drafted.evaluations <= (draft + 2) * drafted.nfe).all())


def test_drafts_that_all_come_true_take_two_evaluations_for_each_run():
    independent = unmask.FullDenoiser(lambda x: torch.zeros(*x.shape, 3).double(), 3, 2)
    x = torch.full((5, 12), 2)
    assert sample(independent, x, SelfSpeculative(3), seed=0).nfe.tolist() == [6] * 5  # 3 runs of 4
    assert sample(independent, x, SelfSpeculative(20), seed=0).nfe.tolist() == [2] * 5
    assert sample(independent, x, SelfSpeculative(0), seed=0).nfe.tolist() == [12] * 5


def test_its_law_is_that_of_left_to_right_and_a_rule_that_skips_verification_has_another():
    oracle, x = random_table(3, 4, 5), torch.full((4,), 3)
    law = exact_law(PerturbedDenoiser(oracle, 0.7), SelfSpeculative(3), x)
    found = sample(PerturbedDenoiser(oracle, 0.7), x.expand(20_000, -1), SelfSpeculative(3), seed=1).tokens
    assert law.pvalue(found) > 1e-4
    unverified = sample(PerturbedDenoiser(oracle, 0.7), x.expand(20_000, -1), Rule(LeftToRight(), TopK(4)), seed=1)
    assert law.pvalue(unverified.tokens) < 1e-6


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Tiny models, and the same with attention blocks of one position."""

    def made(layout: str) -> tuple[LanguageModel, LanguageModel]:
        own: Any
        single: Any
        own, single = (
            unmask.load(write_block_model(tmp_path_factory.mktemp(layout), layout), **OPTIONS.get(layout, {})).network
            for _ in range(2)
        )
        single.block_causal = 1
        whole, parts = (LanguageModel(one, VOCAB, MASK, end_ids=(), max_length=64) for one in (own, single))
        return whole, parts

    return {layout: made(layout) for layout in BLOCKS}


def query_of(x: torch.Tensor, stepwise: torch.Tensor | None) -> Query:
    return replace(Query.of(x, MASK), stepwise=stepwise)


@pytest.mark.parametrize("layout", BLOCKS)
def test_a_stepwise_row_is_evaluated_as_with_blocks_of_one_position_and_the_others_are_not(networks, layout):
    own, single = networks[layout]
    x = torch.tensor([[5, 9, MASK, MASK], [7, MASK, 3, MASK]])
    assert x.shape[1] <= SIZE
    everything, nothing = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    wanted, plain = single(query_of(x, None)), own(query_of(x, None))
    torch.testing.assert_close(own(query_of(x, everything)), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own(query_of(x, nothing)), plain, rtol=1e-4, atol=1e-5)
    mixed = own(query_of(x, torch.tensor([True, False])))
    torch.testing.assert_close(mixed, torch.cat([wanted[:2], plain[2:]]), rtol=1e-4, atol=1e-5)
    assert float((wanted - plain)[:, :30].abs().max()) > 1e-3


@pytest.mark.parametrize("layout", BLOCKS)
def test_finished_blocks_are_read_with_the_model_s_own_blocks(networks, layout):
    """A token of a finished block tells on the positions before it; one of the open block does not."""
    own, _ = networks[layout]
    x = torch.tensor([[5, 9, 4, 11, 6, MASK, MASK, MASK]])
    asked = torch.zeros_like(x, dtype=torch.bool)
    asked[0, 5] = True

    def logits(**changed: int) -> torch.Tensor:
        other = x.clone()
        for place, token in changed.items():
            other[0, int(place[1:])] = token
        return own(Query(other, asked, torch.ones_like(asked), torch.arange(1), stepwise=torch.tensor([True])))

    torch.testing.assert_close(logits(p6=8, p7=2), logits(), rtol=1e-4, atol=1e-5)
    assert float((logits(p4=8) - logits()).abs()[:, :30].max()) > 1e-3
    assert float((logits(p3=8) - logits()).abs()[:, :30].max()) > 1e-4


@pytest.mark.parametrize("layout", BLOCKS)
def test_block_models_draft_and_verify_without_changing_a_token(networks, layout):
    own, single = networks[layout]
    prompts = [[3, 4, 5], [8], [9, 10, 11, 12, 13], [1, 2, 3, 4]]
    options = {"max_new_tokens": 7, "temperature": 1.0, "end_last": False, "streams": range(4)}
    alone = own.generate(prompts, rule="s2d2:draft=0", **options)
    drafted = own.generate(prompts, rule="s2d2:draft=3", **options)
    assert [one.tokens for one in drafted] == [one.tokens for one in alone]
    assert all(one.nfe == 7 for one in alone)
    # Before the first block ends, the reference is the model whose blocks are of one position.
    short = {**options, "max_new_tokens": 3}
    reference = single.generate([[8]], rule="left-to-right", **{**short, "streams": [0]})
    assert own.generate([[8]], rule="s2d2:draft=2", **{**short, "streams": [0]})[0].tokens == reference[0].tokens


def test_it_shares_forward_passes_with_other_rules(networks):
    own, _ = networks["sdar"]
    x = torch.tensor([[5, 9, MASK, MASK, MASK, MASK, MASK, MASK]])
    pool, found = Pool(own), {}
    for slot, rule in enumerate([SelfSpeculative(3), Rule(LeftToRight(), One())]):
        sampler = Sampler(own, rule)
        pool.join(sampler, replace(sampler.start(x, seed=1, blocks=SIZE), slot=torch.tensor([slot])))
    while len(pool):
        pool.evaluate()
        for state in pool.leave():
            found[int(state.slot)] = state.x.tolist()
    for slot, rule in enumerate([SelfSpeculative(3), Rule(LeftToRight(), One())]):
        assert found[slot] == sample(own, x, rule, seed=1, blocks=SIZE).sequences


def test_a_draft_below_nothing_is_refused():
    with pytest.raises(ValueError, match="draft must be a whole number >= 0"):
        SelfSpeculative(-1)
