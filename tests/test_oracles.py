from __future__ import annotations

import math

import pytest
import torch
from conftest import tables
from hypothesis import given
from hypothesis import strategies as st

from unmask.denoiser import Query
from unmask.oracles import (
    HMMDenoiser,
    MarkovDenoiser,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    TableDenoiser,
    pearson,
    random_hmm,
    random_markov,
    random_table,
    sudoku4_grids,
)


def brute_joint(model: HMMDenoiser, length: int) -> torch.Tensor:
    """The joint of an HMM by summing over all hidden paths, nothing shared with forward-backward."""
    letters = "abcdefgh"[:length]
    operands, terms = [model.initial], [letters[0]]
    for i in range(length):
        if i:
            operands.append(model.transition)
            terms.append(letters[i - 1] + letters[i])
        operands.append(model.emission)
        terms.append(letters[i] + letters[i].upper())
    return torch.einsum(",".join(terms) + "->" + letters.upper(), *operands)


@pytest.mark.parametrize("model", [random_hmm(4, 3, 5), random_markov(3, 2), MarkovDenoiser.lazy(3, 0.8)])
def test_chains_agree_with_the_enumerated_joint(model):
    table = TableDenoiser(brute_joint(model, 4))
    x = torch.cartesian_prod(*[torch.arange(4)] * 4)  # every partial state
    query = Query.of(x, 3)
    torch.testing.assert_close(model(query).softmax(-1), table(query).softmax(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(model.log_marginal(x), table.log_marginal(x), atol=1e-10, rtol=0)


def test_a_chain_with_forbidden_moves_falls_back_to_uniform_off_its_support():
    cycle = MarkovDenoiser(torch.tensor([1.0, 0, 0]), torch.eye(3, dtype=torch.float64).roll(1, 1))
    query = Query.of(torch.tensor([[0, 3, 2, 3], [0, 2, 3, 3]]), 3)
    p = cycle(query).softmax(-1)[:, :3]
    assert p[:2].argmax(-1).tolist() == [1, 0]
    assert p[:2].max(-1).values.tolist() == [1.0, 1.0]
    torch.testing.assert_close(p[2:], torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert cycle.log_marginal(query.x).isfinite().tolist() == [True, False]


def test_a_long_chain_does_not_underflow():
    model = random_hmm(3, 4, 1)
    x = torch.randint(0, 4, (2, 5000), generator=torch.Generator().manual_seed(0))
    x[:, ::3] = 4
    query = Query.of(x, 4)
    assert bool((model(query).softmax(-1).sum(-1) - 1).abs().max() < 1e-9)
    assert bool(model.log_marginal(x).isfinite().all())


@given(tables(), st.integers(0, 2**31))
def test_table_conditionals_are_ratios_of_sums(table, seed):
    generator = torch.Generator().manual_seed(seed)
    point = table.points[int(torch.randint(len(table.points), (1,), generator=generator))]
    masked = torch.rand(4, generator=generator) < 0.6
    masked[0] = True
    x = torch.where(masked, 3, point)
    position = int(masked.nonzero()[0])
    p = table(Query.of(x.unsqueeze(0), 3)).softmax(-1)[0, :3]
    with_symbol = torch.stack([x.index_put((torch.tensor(position),), torch.tensor(s)) for s in range(3)])
    expected = (table.log_marginal(with_symbol) - table.log_marginal(x.unsqueeze(0))).exp()
    torch.testing.assert_close(p, expected, atol=1e-12, rtol=0)


def test_there_are_288_sudoku_grids_and_contradictions_fall_back_to_uniform():
    grids = sudoku4_grids()
    assert len(torch.unique(grids, dim=0)) == 288
    oracle = Sudoku4Denoiser()
    x = torch.full((2, 16), 4)
    x[0, :4] = torch.tensor([0, 1, 2, 4])  # three of a row determine the fourth
    x[1, :2] = 0  # twice the same symbol in a row
    logits = oracle(Query.of(x, 4))
    assert logits[0].softmax(-1).tolist() == pytest.approx([0, 0, 0, 1, 0])
    torch.testing.assert_close(logits[-1].softmax(-1)[:4], torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize(
    "oracle",
    [random_table(3, 5, 0), random_hmm(3, 3, 0), random_markov(3, 0), PerturbedDenoiser(random_hmm(3, 3, 0), 0.5)],
)
def test_an_oracle_answers_the_same_bits_in_any_batch(oracle):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (64, 5), generator=generator)
    x[:, 2] = 3
    together = oracle(Query.of(x, 3))
    alone = torch.cat([oracle(Query.of(row.unsqueeze(0), 3)) for row in x])
    assert torch.equal(together, alone)
    some = torch.randperm(64, generator=generator)[:23]
    assert torch.equal(oracle(Query.of(x[some], 3)), torch.cat([oracle(Query.of(x[i : i + 1], 3)) for i in some]))


def test_padding_changes_no_bit_of_a_chain():
    model = random_hmm(3, 4, 0)
    x = torch.tensor([[0, 4, 2, 4, 4]])
    wide = torch.cat([x, torch.full((1, 3), 4)], 1)
    valid = torch.arange(8).unsqueeze(0) < 5
    query = Query(wide, (wide == 4) & valid, valid, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(model(query), model(Query.of(x, 4)))


def test_the_perturbation_is_bounded_and_a_function_of_the_state():
    table = random_table(3, 4, 1)
    noisy = PerturbedDenoiser(table, 0.25, seed=3)
    query = Query.of(torch.tensor([[3, 3, 0, 3], [3, 1, 0, 3]]), 3)
    change = (noisy(query) - table(query))[:, :3]
    assert 0.05 < float(change.abs().max()) <= 0.25
    assert torch.equal(noisy(query), noisy(query))
    assert not torch.equal(change, (PerturbedDenoiser(table, 0.25, seed=4)(query) - table(query))[:, :3])
    assert not torch.equal(change[0], change[3])


def test_what_is_no_distribution_is_refused():
    with pytest.raises(ValueError, match=r"shape \(symbols,\) \* length"):
        TableDenoiser(torch.full((2, 3), 1 / 6))
    for bad in (torch.full((2, 2), 0.3), torch.tensor([1.5, -0.5]), torch.tensor([math.nan, 1.0])):
        with pytest.raises(ValueError, match="sum 1"):
            TableDenoiser(bad)
    with pytest.raises(ValueError, match="transition"):
        MarkovDenoiser(torch.tensor([0.5, 0.5]), torch.tensor([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="expected initial"):
        MarkovDenoiser(torch.tensor([0.5, 0.5]), torch.eye(3))
    with pytest.raises(ValueError, match="5 tokens"):
        random_table(2, 5, 0)(Query.of(torch.tensor([[2, 2]]), 2))
    with pytest.raises(ValueError, match="too many"):
        random_markov(4, 0).completions(torch.full((40,), 4))
    with pytest.raises(ValueError, match="probability zero"):
        Sudoku4Denoiser().completions(torch.tensor([0, 0] + [4] * 14))


def test_pearson_is_uniform_under_the_law_and_small_off_it():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)

    def one(law: torch.Tensor, draws: int = 1000) -> float:
        return pearson(torch.bincount(torch.multinomial(law, draws, True, generator=generator), minlength=5), p)

    values = torch.tensor([one(p) for _ in range(400)])
    # 400 uniform p-values: the share below 0.1 has standard deviation 0.015.
    assert 0.02 < float((values < 0.1).double().mean()) < 0.18
    off = p + torch.tensor([0.05, -0.05, 0, 0, 0], dtype=torch.float64)
    # 0.05 away in total variation at 10,000 draws: the mean statistic is 54 standard deviations off.
    assert max(one(off, 10_000) for _ in range(20)) < 1e-6
    assert pearson(torch.tensor([1, 0, 0, 0, 1]), p) == 0.0
    assert math.isnan(pearson(torch.tensor([2, 1, 0, 0, 0]), p))  # too few to tell anything


@pytest.mark.parametrize(
    "oracle", [random_table(3, 4, 1), random_hmm(3, 3, 1), random_markov(3, 1)], ids=lambda o: type(o).__name__
)
def test_a_token_that_stands_is_looked_at_as_if_it_were_masked(oracle):
    """The table answered with some other position's row."""
    x = torch.tensor([[0, 3, 1, 2], [2, 2, 0, 1]])
    where = torch.tensor([[True, True, False, True], [False, True, False, False]])
    rows = []
    for row, position in where.nonzero().tolist():
        hidden = x[row : row + 1].clone()
        hidden[0, position] = 3
        one = torch.zeros(1, 4, dtype=torch.bool).index_fill(1, torch.tensor(position), True)
        rows.append(oracle(Query(hidden, one, torch.ones_like(one), torch.arange(1))).softmax(-1))
    found = oracle(Query(x, where, torch.ones_like(where), torch.arange(2))).softmax(-1)
    assert found == pytest.approx(torch.cat(rows))
