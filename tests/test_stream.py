from __future__ import annotations

import pytest
import torch

from unmask.draws.streams import derive
from unmask.oracles import random_hmm
from unmask.rules import Confidence, Entropy, EntropyBound, IndependenceTest, One, Rule, Speculative, Stable, Steps
from unmask.sampling.loop import Sampler
from unmask.sampling.pool import Pool
from unmask.sampling.queue import stream
from unmask.sampling.result import StepInfo
from unmask.sampling.sample import sample
from unmask.sampling.state import State

RULES = [
    Rule(Entropy(), EntropyBound(0.6)),
    Rule(Confidence(), Steps(3)),
    Rule(Entropy(), Speculative(2)),
    Rule(Confidence(), Stable(0.5, 0.5, 1)),
]


def queue(count: int, length: int = 6) -> list[list[int]]:
    """Sequences with different numbers of masks, the third without any."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 3, (count, length), generator=generator)
    x[torch.rand(count, length, generator=generator) < 0.7] = 3
    x[2] = 1
    return x.tolist()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("slots", [1, 3, 50])
def test_every_sequence_is_what_it_is_alone(rule, slots):
    model, x = random_hmm(3, 3, 0), queue(17)
    found = dict(stream(Sampler(model, rule), x, slots, seed=5, temperature=0.8))
    assert sorted(found) == list(range(17))
    for number, tokens in enumerate(x):
        alone = sample(model, [tokens], rule, streams=[derive(5, number)], temperature=0.8)
        assert found[number].sequences == alone.sequences
        assert found[number].nfe.tolist() == alone.nfe.tolist()
        assert found[number].bounds == alone.bounds
        assert found[number].streams == alone.streams
        assert found[number].initial.tolist() == [tokens]


def test_lengths_may_differ_and_no_padding_is_left():
    model, rule = random_hmm(3, 3, 0), Rule(Entropy(), EntropyBound(0.5))
    x = [[3] * length for length in (5, 2, 7, 1, 4)]
    found = dict(stream(Sampler(model, rule), x, 2, streams=range(5)))
    for number, tokens in enumerate(x):
        assert found[number].tokens.shape == (1, len(tokens))
        assert found[number].sequences == sample(model, [tokens], rule, streams=[number]).sequences


def test_freed_slots_are_refilled_and_no_evaluation_is_half_empty_before_the_end():
    sizes: list[int] = []

    def note(state: State, info: StepInfo) -> None:
        sizes.append(len(info.sequence))

    x, rule = [tokens for tokens in queue(40) if 3 in tokens], Rule(Entropy(), EntropyBound(0.6))
    results = list(stream(Sampler(random_hmm(3, 3, 0), rule), x, 8, seed=0, on_step=note))
    total = sum(int(result.nfe) for _, result in results)
    assert sum(sizes) == total
    assert all(size == 8 for size in sizes[: total // 8 - 6])
    assert [number for number, _ in results] != sorted(number for number, _ in results)


def test_the_queue_is_read_as_slots_become_free():
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield [3, 3, 3]

    results = stream(Sampler(random_hmm(3, 3, 0), Rule(Entropy(), One())), endless(), 4, seed=0)
    next(results)
    assert len(read) == 4


def test_states_are_joined_and_parted():
    sampler = Sampler(random_hmm(3, 3, 0), Rule(Entropy(), EntropyBound(0.3)))
    a, b = sampler.start([[3, 3, 0]], seed=1), sampler.start([[3, 1], [3, 3]], seed=2)
    both = State.join([a, b])
    assert both.x.tolist() == [[3, 3, 0], [3, 1, 3], [3, 3, 3]]
    assert both.valid.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert both.pending.sum().item() == 5
    again = both.select(torch.tensor([2, 0]))
    assert again.streams.tolist() == [both.streams[2].item(), both.streams[0].item()]
    with pytest.raises(ValueError, match="at least one"):
        State.join([])


def test_a_history_is_joined_and_parted():
    sampler = Sampler(random_hmm(3, 3, 0), Rule(Confidence(), Stable(0.5, 0.5, 1)))
    rows = [torch.tensor([3] * 6), torch.tensor([3, 1, 3, 3])]
    alone = [sampler.run(sampler.start([row], streams=[5 + i])) for i, row in enumerate(rows)]
    first, _ = sampler.step(sampler.start([rows[0]], streams=[5]))
    both = State.join([first, sampler.start([rows[1]], streams=[6])])
    both, _ = sampler.step(both)
    long, short = both.split()
    for state, expected in ((long, alone[0]), (short.narrow(4), alone[1])):
        found = sampler.run(state)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.nfe.tolist() == expected.nfe.tolist()


def test_bad_arguments_are_named():
    sampler = Sampler(random_hmm(3, 3, 0), Rule(Entropy(), One()))
    for slots in (0, True, 1.5):
        with pytest.raises(ValueError, match="slots"):
            stream(sampler, [[3]], slots, seed=0)  # pyright: ignore
    with pytest.raises(ValueError, match="either seed"):
        stream(sampler, [[3]], 1)
    with pytest.raises(ValueError, match="1 streams"):
        list(stream(sampler, [[3], [3]], 1, streams=[7]))


def test_a_pool_is_as_wide_as_the_longest_that_is_left():
    model = random_hmm(3, 3, 0)
    pool = Pool(model)
    sampler = Sampler(model, Rule(Entropy(), One()))
    pool.join(sampler, sampler.start([[3] * 2 + [0] * 10, [3] * 5], seed=0, slots=[7, 8]))
    gone = []
    while len(pool) == 2:
        pool.evaluate()
        gone += pool.leave()
    assert [int(one.slot) for one in gone] == [7]
    assert pool.everyone()[0].x.shape == (1, 5)


class Watched:
    """A model that notes whom it is asked about, and fails for some slots."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.inner, self.broken, self.asked = random_hmm(3, 3, 0), broken, []
        self.vocab_size, self.mask_id = self.inner.vocab_size, self.inner.mask_id

    def __call__(self, query):
        self.asked.append(sorted(set(query.sequence.tolist())))
        logits = self.inner(query).clone()
        of = query.sequence[query.rows.div(query.x.shape[1], rounding_mode="floor")]
        logits[torch.isin(of, torch.tensor(self.broken, dtype=torch.int64))] = torch.nan
        return logits


def test_one_that_leaves_in_an_open_turn_is_evaluated_for_no_more():
    model = Watched()
    sampler = Sampler(model, Rule(Confidence(), IndependenceTest(1e-6)))
    pool = Pool(model)
    pool.join(sampler, sampler.start([[3] * 8] * 3, streams=[0, 1, 2], slots=[4, 5, 6]))
    assert pool.evaluate() == []  # it asks again
    assert pool.leave([5, 6]) == []
    gone, states = [], []
    while len(pool):
        pool.evaluate()
        left = pool.leave()
        gone += [int(one.slot) for one in left]
        states += left
    assert model.asked[0] == [4, 5, 6]
    assert all(asked == [4] for asked in model.asked[1:])
    assert gone == [5, 6, 4]
    alone = sample(model.inner, [[3] * 8], sampler.rule, streams=[0])
    assert states[-1].x.tolist() == alone.tokens.tolist()
    assert states[-1].nfe.tolist() == alone.nfe.tolist()


def test_a_sequence_that_fails_harms_no_other():
    model = Watched(broken=(1, 5))
    pool = Pool(model, keep_going=True)
    for rule, slots in ((RULES[0], [0, 1, 2]), (RULES[2], [3, 4]), (RULES[1], [5])):
        sampler = Sampler(model, rule)
        pool.join(sampler, sampler.start([[3] * 6] * len(slots), streams=slots, slots=slots))
    done = {}
    while len(pool):
        pool.evaluate()
        done |= {int(one.slot): one for one in pool.leave()}
    assert sorted(int(one.slot) for one, _ in pool.failed) == [1, 5]
    assert all("logits" in str(error) for _, error in pool.failed)
    for slot, rule in ((0, RULES[0]), (2, RULES[0]), (3, RULES[2]), (4, RULES[2])):
        alone = sample(model.inner, [[3] * 6], rule, streams=[slot])
        assert done[slot].x.tolist() == alone.tokens.tolist()
    with pytest.raises(ValueError, match="logits"):
        list(stream(Sampler(model, RULES[0]), [[3, 3]] * 3, 2, seed=0))
