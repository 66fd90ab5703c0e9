from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import tables
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import (
    All,
    CarriedBound,
    Confidence,
    Determined,
    Entropy,
    EntropyBound,
    Factor,
    FullDenoiser,
    LeftToRight,
    Margin,
    NetworkDenoiser,
    Noisy,
    One,
    Rule,
    Sampler,
    Speculative,
    Steps,
    Threshold,
    TopK,
    Uniform,
    derive,
    sample,
)
from unmask.denoiser import Query
from unmask.errors import LogitsError
from unmask.oracles import PerturbedDenoiser, random_hmm, random_markov, random_table

CALM = [Entropy(), Determined(0.5), Confidence(), Margin(), LeftToRight(), Uniform()]
ORDERS = st.sampled_from([*CALM, Noisy(), Noisy(Margin(), 0.3)])
BUDGETS = st.one_of(
    st.sampled_from([One(), Speculative(2), TopK(2), Steps(2), Threshold(0.6), Factor(0.9), All()]),
    st.floats(0, 2).map(EntropyBound),
    st.floats(0, 2).map(CarriedBound),
)
RULES = st.builds(Rule, ORDERS, BUDGETS)


class Counting:
    """A denoiser that records what it was asked."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.queries = denoiser, []
        self.vocab_size, self.mask_id = denoiser.vocab_size, denoiser.mask_id

    def __call__(self, query: Query) -> torch.Tensor:
        self.queries.append(query)
        return self.denoiser(query)


@given(
    tables(),
    RULES,
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_what_every_sampler_keeps(oracle, rule, rows, seed):
    oracle = PerturbedDenoiser(oracle, 0.3)
    x = torch.tensor(rows)
    counting = Counting(oracle)
    result = sample(counting, x, rule, seed=seed, trace=True)
    given_, masked = x != 3, (x == 3).sum(-1)
    assert bool((result.tokens[given_] == x[given_]).all()), "the prompt changed"
    assert bool((result.tokens != 3).all()), "a mask was left or drawn"
    assert bool((result.nfe <= masked).all())
    assert bool(((result.nfe == 0) == (masked == 0)).all())
    assert result.forward_passes == len(counting.queries) == int(result.nfe.max())
    for query in counting.queries:
        assert bool((query.x[query.where] == 3).all())
        assert bool(query.where.any(-1).all()), "a finished sequence was evaluated"
    assert bool((result.bound >= 0).all())
    for row in range(len(x)):
        events = result.trace(row)
        assert sorted(event.position for event in events) == (x[row] == 3).nonzero().squeeze(-1).tolist()
        assert [event.step for event in events] == sorted(event.step for event in events)
        assert all(int(result.tokens[row, event.position]) == event.token for event in events)
        assert len(result.bounds[row]) == int(result.nfe[row])
    if isinstance(rule.budget, EntropyBound):
        assert max(max(b, default=0.0) for b in result.bounds) <= float(rule.budget.gamma) + 1e-12
    if isinstance(rule.budget, CarriedBound):
        assert float(result.bound.max()) <= rule.budget.epsilon + 1e-12


@settings(max_examples=60)
@given(
    st.sampled_from([random_hmm(3, 3, 0), random_markov(3, 1), PerturbedDenoiser(random_hmm(2, 3, 3), 0.4)]),
    RULES,
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=7),
    st.integers(0, 2**63),
    st.integers(0, 5),
)
def test_a_sequence_alone_equals_the_same_sequence_in_any_batch_bit_for_bit(oracle, rule, rows, stream, block):
    streams = [derive(stream, row) for row in range(len(rows))]
    taus = torch.tensor([(0.0, 0.7, 1.0)[row % 3] for row in range(len(rows))], dtype=torch.float64)
    gammas = torch.linspace(0, 1, len(rows), dtype=torch.float64)
    mixed = isinstance(rule.budget, EntropyBound)
    together_rule = Rule(rule.order, EntropyBound(gammas)) if mixed else rule
    blocks = block or None
    together = sample(oracle, rows, together_rule, streams=streams, temperature=taus, blocks=blocks, trace=True)
    for row, tokens in enumerate(rows):
        alone_rule = Rule(rule.order, EntropyBound(float(gammas[row]))) if mixed else rule
        alone = sample(
            oracle,
            [tokens],
            alone_rule,
            streams=[streams[row]],
            temperature=float(taus[row]),
            blocks=blocks,
            trace=True,
        )
        assert alone.sequences[0] == together.sequences[row]
        assert int(alone.nfe[0]) == int(together.nfe[row])
        assert alone.bounds[0] == together.bounds[row]  # equal floats: the same bits
        assert alone.trace(0) == together.trace(row)


def test_the_order_of_a_batch_does_not_matter():
    oracle, rule = random_hmm(3, 4, 0), Rule(Uniform(), EntropyBound(0.3))
    x = torch.full((50, 12), 4)
    streams = [derive(0, i) for i in range(50)]
    a = sample(oracle, x, rule, streams=streams)
    b = sample(oracle, x, rule, streams=streams[::-1])
    assert torch.equal(a.tokens, b.tokens.flip(0))
    assert torch.equal(a.nfe, b.nfe.flip(0))
    assert a.streams == tuple(streams)
    assert sample(oracle, x, rule, seed=0).streams == a.streams
    assert len(torch.unique(a.tokens, dim=0)) > 25


def test_step_by_step_equals_sample_and_changes_no_earlier_state():
    oracle, rule = random_table(3, 5, 0), Rule(Entropy(), EntropyBound(0.5))
    sampler = Sampler(oracle, rule)
    state = sampler.start(torch.full((8, 5), 3), seed=4)
    first, before = state, state.x.clone()
    passes = 0
    while not bool(state.finished.all()):
        state, info = sampler.step(state)
        passes += info.forward_passes
    assert torch.equal(state.x, sample(oracle, torch.full((8, 5), 3), rule, seed=4).tokens)
    assert torch.equal(first.x, before)
    same, info = sampler.step(state)
    assert same is state
    assert info.forward_passes == 0


def test_nothing_to_unmask_returns_at_once():
    class Broken:
        vocab_size, mask_id = 4, 3

        def __call__(self, query: Query) -> torch.Tensor:
            raise AssertionError("evaluated")

    for x in (torch.tensor([[0, 1]]), [], torch.zeros(0, 5, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)):
        result = sample(Broken(), x, Rule(Entropy(), One()), seed=0)
        assert result.nfe.tolist() == [0] * len(x)
        assert result.forward_passes == 0
        assert bool(result.finished.all())


def test_a_step_limit_leaves_masks_and_says_so():
    oracle = random_table(3, 5, 0)
    result = sample(oracle, torch.full((2, 5), 3), Rule(Entropy(), One()), seed=0, max_steps=2)
    assert result.masks_left.tolist() == [3, 3]
    assert not bool(result.finished.any())
    assert int((result.tokens == 3).sum()) == 6
    assert result.forward_passes == 2
    with pytest.raises(ValueError, match="max_steps"):
        sample(oracle, torch.full((2, 5), 3), Rule(Entropy(), One()), seed=0, max_steps=-1)


def test_blocks_open_one_after_the_other_from_the_first_mask():
    oracle = random_markov(3, 0)
    x = torch.tensor([[0, 1, 3, 3, 3, 3, 3], [3, 3, 3, 2, 3, 3, 3]])
    result = sample(oracle, x, Rule(Entropy(), One()), seed=0, blocks=2, trace=True)
    for row, first in ((0, 2), (1, 0)):
        order = [(event.position - first) // 2 for event in result.trace(row)]
        assert order == sorted(order)
    own = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [2, 2, 2, 1, 0, 0, 0]])
    result = sample(oracle, x, Rule(LeftToRight(), All()), seed=0, blocks=own, trace=True)
    assert [event.position for event in result.trace(1)] == [4, 5, 6, 0, 1, 2]
    assert result.nfe.tolist() == [2, 2]
    for bad in (0, -1, 1.5, torch.zeros(3, 3)):
        with pytest.raises(ValueError, match="block"):
            sample(oracle, x, Rule(Entropy(), One()), seed=0, blocks=bad)  # pyright: ignore[reportArgumentType]


def test_temperature_is_of_the_draw_and_planning_does_not_see_it():
    oracle = random_table(3, 5, 2)
    x = torch.full((200, 5), 3)
    greedy = sample(oracle, x, Rule(Entropy(), EntropyBound(0.2)), seed=0, temperature=0.0, trace=True)
    assert len(torch.unique(greedy.tokens, dim=0)) == 1
    assert int(greedy.nfe[0]) > 1  # at temperature 0 the draw has no entropy; planning with it would take one step
    assert greedy.trace(0)[0].entropy > 0
    per_sequence = torch.where(torch.arange(200) < 100, 0.0, 1.0)
    mixed = sample(oracle, x, Rule(Entropy(), EntropyBound(0.2)), seed=0, temperature=per_sequence)
    assert torch.equal(mixed.tokens[:100], greedy.tokens[:100])
    assert len(torch.unique(mixed.tokens[100:], dim=0)) > 10


def test_forbidden_tokens_bind_planning_and_drawing():
    oracle = random_table(3, 4, 0)
    x = torch.full((500, 4), 3)
    result = sample(oracle, x, Rule(Entropy(), One()), seed=0, forbidden=[1], trace=True)
    assert not bool((result.tokens == 1).any())
    two = FullDenoiser(lambda x: torch.tensor([5.0, 0.0, 5.0, 0.0]).expand(*x.shape, -1).clone(), 4, 3)
    only = sample(two, [[3, 3]], Rule(Entropy(), EntropyBound(0.1)), seed=0, forbidden=[2], trace=True)
    assert only.sequences == [[0, 0]]
    assert int(only.nfe[0]) == 1  # without the second mode the entropy is small enough for both at once
    with pytest.raises(ValueError, match="outside the vocabulary"):
        sample(oracle, x, Rule(Entropy(), One()), seed=0, forbidden=[7])
    with pytest.raises(ValueError, match="every token"):
        sample(oracle, x, Rule(Entropy(), One()), seed=0, forbidden=[0, 1, 2])


def test_a_mask_token_with_all_the_mass_is_never_drawn():
    stubborn = FullDenoiser(lambda x: torch.tensor([0.0, 0.0, 99.0]).expand(*x.shape, -1).clone(), 3, 2)
    result = sample(stubborn, torch.full((50, 3), 2), Rule(Entropy(), One()), seed=0, temperature=0.0)
    assert bool((result.tokens != 2).all())


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "no mass")])
def test_bad_logits_name_sequence_and_position(value, reason):
    def model(x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*x.shape, 4)
        logits[1, 2] = value
        return logits

    x = torch.tensor([[3, 3, 0], [0, 0, 3]])
    with pytest.raises(LogitsError, match=rf"row 2 \(sequence 1, position 2\).*{reason}"):
        sample(FullDenoiser(model, 4, 3), x, Rule(Entropy(), One()), seed=0)


def test_bad_arguments_are_refused_before_any_evaluation():
    oracle, rule, x = random_table(3, 4, 0), Rule(Entropy(), One()), torch.full((2, 4), 3)
    cases = [
        ({"x": torch.tensor([[0, 1, 4, 3]])}, "token 4 at sequence 0, position 2 is outside the vocabulary"),
        ({"x": torch.tensor([[0, 1, -1, 3]])}, "outside the vocabulary"),
        ({"x": torch.zeros(2, 4)}, "tokens are integers"),
        ({"x": torch.zeros(1, 2, 4, dtype=torch.int64)}, "tokens are integers"),
        ({"x": [[0, 1], [[3], [3]]]}, "sequence 1"),
        ({"x": [[0.5, 1.0]]}, "sequence 0"),
        ({"seed": 0.5}, "seed is an integer"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"seed": None}, "either seed"),
        ({"streams": [1, 2]}, "either seed"),
        ({"seed": None, "streams": [1]}, "1 streams for a batch of 2"),
        ({"seed": None, "streams": [1, 2**64]}, "64-bit"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": torch.ones(3)}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ]
    for changes, message in cases:
        arguments = {"x": x, "seed": 0, **changes}
        with pytest.raises(ValueError, match=message):
            sample(oracle, rule=rule, **arguments)
    for vocab, mask in ((4, 4), (4, -1), (1, 0), (3.0, 1)):
        with pytest.raises(ValueError, match=r"vocab"):
            sample(FullDenoiser(lambda x: x, vocab, mask), x, rule, seed=0)  # pyright: ignore[reportArgumentType]


def test_logits_of_the_wrong_shape_or_dtype_are_refused():
    class Wrong:
        vocab_size, mask_id = 4, 3

        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

        def __call__(self, query: Query) -> torch.Tensor:
            return self.logits

    for logits in (torch.zeros(1, 4), torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(1, 2, 4)):
        with pytest.raises(ValueError, match="expected float logits"):
            sample(Wrong(logits), [[3, 3]], Rule(Entropy(), One()), seed=0)
    with pytest.raises(ValueError, match="returned shape"):
        sample(FullDenoiser(lambda x: torch.zeros(1, 2, 3), 4, 3), [[3, 3]], Rule(Entropy(), One()), seed=0)
    with pytest.raises(ValueError, match="one length"):
        sample(FullDenoiser(lambda x: torch.zeros(2, 2, 4), 4, 3), [[3, 3], [3]], Rule(Entropy(), One()), seed=0)


def test_a_denoiser_may_run_in_inference_mode_and_keeps_its_tensor():
    table = torch.randn(3, 4)

    class Cached:
        vocab_size, mask_id = 4, 3

        @torch.inference_mode()
        def __call__(self, query: Query) -> torch.Tensor:
            return table[query.where.nonzero()[:, 1]] + 0 if len(query.x) > 1 else table[: int(query.where.sum())]

    before = table.clone()
    sample(Cached(), [[3, 3, 3], [3, 3, 3]], Rule(Entropy(), One()), seed=0, forbidden=[1])
    sample(Cached(), [[3, 3, 3]], Rule(Entropy(), One()), seed=0, forbidden=[1])
    assert torch.equal(table, before)


def test_a_denoiser_must_return_a_tensor():
    class Lists:
        vocab_size, mask_id = 4, 3

        def __call__(self, query: Query):
            return [1.0]

    with pytest.raises(ValueError, match="list"):
        sample(Lists(), [[3]], Rule(Entropy(), One()), seed=0)  # pyright: ignore[reportArgumentType]


def test_a_network_that_ignores_padding_refuses_it():
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return torch.zeros(int(where.sum()), 4)

    denoiser = NetworkDenoiser(Network(), vocab_size=4, mask_id=3)
    sample(denoiser, [[3, 3], [3, 0]], Rule(Entropy(), One()), seed=0)
    with pytest.raises(ValueError, match="padding"):
        sample(denoiser, [[3, 3], [3]], Rule(Entropy(), One()), seed=0)
    with pytest.raises(ValueError, match="takes sequences of 5 tokens, got 2"):
        sample(NetworkDenoiser(Network(), 4, 3, length=5), [[3, 3]], Rule(Entropy(), One()), seed=0)


def test_integers_of_any_kind_are_seeds_and_streams_and_the_input_is_not_shared():
    oracle, rule = random_table(3, 4, 0), Rule(Entropy(), One())
    x = torch.tensor([[0, 1, 2, 0]])
    result = sample(oracle, x, rule, seed=torch.tensor(3))  # pyright: ignore[reportArgumentType]
    result.tokens[0, 0] = 2
    assert int(x[0, 0]) == 0
    again = sample(oracle, torch.full((1, 4), 3), rule, streams=torch.tensor([5]))
    assert again.sequences == sample(oracle, torch.full((1, 4), 3), rule, streams=[5]).sequences


def test_a_trace_renders_in_a_terminal():
    oracle = random_markov(3, 0)
    result = sample(oracle, [[3, 3, 0]], Rule(LeftToRight(), One()), seed=0, trace=True)
    a, b = result.sequences[0][:2]
    lines = result.render(0, decode=lambda token: "abc"[token]).splitlines()
    letters = ["abc"[token] for token in (a, b)]
    assert lines[0] == "   0  _ _ a"
    assert lines[1].startswith(f"   1  [{letters[0]}] _ a   p >= 0.")
    assert lines[2].startswith(f"   2  {letters[0]} [{letters[1]}] a   p >= 0.")
    assert "\x1b[" in result.render(0, color=True)
    stopped = sample(oracle, [[3, 3, 0]], Rule(LeftToRight(), One()), seed=0, trace=True, max_steps=1)
    assert stopped.render().splitlines()[-1].split("]")[1].startswith(" _ 0")
    with pytest.raises(IndexError, match="no sequence 7"):
        result.trace(7)
    assert result.trace(-1) == result.trace(0)


def test_a_trace_is_plain_data():
    oracle = random_markov(3, 0)
    result = sample(oracle, [[3, 3, 0], [3]], Rule(Entropy(), One()), seed=0, trace=True)
    data = json.loads(json.dumps(result.trace_json(0)))
    assert data["tokens"] == result.sequences[0]
    assert data["initial"] == [3, 3, 0]
    assert data["nfe"] == 2
    assert len(data["events"]) == 2
    assert data["stream"] == derive(0, 0)
    assert 0 < data["events"][0]["probability"] <= 1
    with pytest.raises(ValueError, match="trace=True"):
        sample(oracle, [[3]], Rule(Entropy(), One()), seed=0).trace()


def test_a_trace_keeps_the_most_probable_tokens_if_asked():
    oracle, x = random_hmm(3, 4, 0), [[4, 4, 0, 4, 4, 4], [4, 1, 4]]
    rule = Rule(Entropy(), EntropyBound(0.5))
    plain, result = (sample(oracle, x, rule, seed=0, trace=True, candidates=count) for count in (0, 3))
    assert torch.equal(plain.tokens, result.tokens)
    assert all(event.candidates == () for event in plain.trace(0))
    for row in range(2):
        tokens = torch.tensor([x[row]])
        for event in result.trace(row):
            if event.step > 1:
                break  # later steps see what was drawn
            logits = oracle(Query.of(tokens, 4))
            row_of = (tokens[0] == 4).nonzero().squeeze(-1).tolist().index(event.position)
            mass = logits[row_of, :4].softmax(-1)
            best = mass.sort(descending=True).indices[:3].tolist()
            assert [token for token, _ in event.candidates] == best
            assert [p for _, p in event.candidates] == pytest.approx(mass[best].tolist())
        for event in result.trace(row):
            assert dict(event.candidates).get(event.token, event.probability) == pytest.approx(event.probability)
    every = sample(oracle, x, rule, seed=0, trace=True, candidates=99, forbidden=[2])
    for event in every.trace(0):  # never the mask, nor a forbidden token
        assert sorted(token for token, _ in event.candidates) == [0, 1, 3]
        assert sum(p for _, p in event.candidates) == pytest.approx(1)
    assert len(json.loads(json.dumps(every.trace_json(0)))["events"][0]["candidates"]) == 3
    ahead, one = (
        sample(oracle, x, Rule(Entropy(), budget), seed=0, trace=True, candidates=3)
        for budget in (Speculative(2), One())
    )
    assert bool((ahead.nfe < one.nfe).any())
    for row in range(2):  # verified drafts are one at a time, in fewer evaluations
        events = [sorted(result.trace(row), key=lambda event: event.position) for result in (ahead, one)]
        assert [event.candidates for event in events[0]] == [event.candidates for event in events[1]]
    for wrong in (-1, 2.0, True):
        with pytest.raises(ValueError, match="candidates must be a whole number >= 0"):
            sample(oracle, x, rule, seed=0, candidates=wrong)  # pyright: ignore[reportArgumentType]


def test_rules_with_the_same_seed_are_coupled():
    # One uniform per position, whatever the rule: with independent positions all rules give the same sample.
    free = FullDenoiser(lambda x: torch.arange(4.0).expand(*x.shape, -1).clone(), 4, 3)
    x = torch.full((20, 6), 3)
    rules = [Rule(Entropy(), One()), Rule(Uniform(), TopK(2)), Rule(LeftToRight(), All())]
    a, b, c = (sample(free, x, rule, seed=9).tokens for rule in rules)
    assert torch.equal(a, b)
    assert torch.equal(a, c)


def test_a_state_can_be_edited_and_resumed():
    oracle, rule = random_markov(3, 0), Rule(Entropy(), One())
    sampler = Sampler(oracle, rule)
    state, _ = sampler.step(sampler.start([[3, 3, 3]], seed=0))
    done = sampler.run(replace(state, pending=torch.zeros_like(state.pending)))
    assert done.forward_passes == 0
    assert int(done.nfe[0]) == 1
