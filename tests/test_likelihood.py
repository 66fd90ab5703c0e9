from __future__ import annotations

import itertools
import json
import math
import sys
import types

import pytest
import torch

from benchmarks.likelihood import CHAINS, main, on_model, variance_ratio
from unmask import first_hitting, nelbo, sample
from unmask.denoiser import Query
from unmask.draws.categorical import log_prob, marginals
from unmask.errors import LogitsError
from unmask.likelihood.nelbo import chain_log_likelihood
from unmask.oracles import MarkovDenoiser, PerturbedDenoiser, TableDenoiser, random_hmm, random_markov, random_table
from unmask.schedule import Linear
from unmask.tasks.sudoku import demo_puzzles


def value(denoiser, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(1/n) Σ_{i∈M} -log p_i(x_i)` of each row."""
    query = Query(torch.where(mask, denoiser.mask_id, x), mask, torch.ones_like(mask), torch.arange(len(x)))
    logits = denoiser(query)
    nats = torch.zeros(mask.shape, dtype=torch.float64)
    nats[mask] = -log_prob(logits, marginals(logits, [denoiser.mask_id]).log_norm, x[mask])
    return nats.sum(-1) / mask.sum(-1)


def enumerated(denoiser, x: torch.Tensor, positions: list[int]) -> float:
    """The NELBO by summing over all masks."""
    total = 0.0
    for n in range(1, len(positions) + 1):
        masks = []
        for members in itertools.combinations(positions, n):
            mask = torch.zeros(len(x), dtype=torch.bool)
            mask[list(members)] = True
            masks.append(mask)
        total += float(value(denoiser, x.expand(len(masks), -1), torch.stack(masks)).mean())
    return total


@pytest.mark.parametrize("oracle", [random_table(3, 4, 1), random_markov(3, 2), random_hmm(2, 3, 1)])
def test_with_exact_conditionals_the_nelbo_is_the_negative_log_likelihood(oracle):
    x = torch.tensor([0, 2, 1, 1])
    exact = -float(oracle.log_marginal(x.unsqueeze(0)))
    assert enumerated(oracle, x, [0, 1, 2, 3]) == pytest.approx(exact, abs=1e-9)
    pinned = torch.tensor([oracle.mask_id, 2, oracle.mask_id, 1])
    conditional = exact + float(oracle.log_marginal(pinned.unsqueeze(0)))
    assert enumerated(oracle, x, [0, 2]) == pytest.approx(conditional, abs=1e-9)


@pytest.mark.parametrize("strata", [1, 3, 8])
@pytest.mark.parametrize("denoiser", [random_markov(3, 2), PerturbedDenoiser(random_table(3, 5, 1), 1.0)])
def test_the_estimator_is_unbiased(denoiser, strata):
    """Mean of 3,000 independent estimates against enumeration, 4 standard errors: fails one run in 16,000 each."""
    x = torch.tensor([0, 2, 1, 1, 0])
    for maskable, positions in ((None, [0, 1, 2, 3, 4]), (torch.tensor([[True, False, True, True, False]]), [0, 2, 3])):
        rows = x.expand(3000, -1)
        some = None if maskable is None else maskable.expand(3000, -1)
        found = nelbo(denoiser, rows, maskable=some, strata=strata, replicates=1, seed=1, batch_size=4096)
        error = float(found.nelbo.std()) / 3000**0.5
        assert abs(float(found.nelbo.mean()) - enumerated(denoiser, x, positions)) <= 4 * error + 1e-12
        assert found.tokens.unique().tolist() == [len(positions)]


def test_the_standard_error_is_that_of_the_estimate():
    chain, x = random_markov(3, 2), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0])
    found = nelbo(chain, x.expand(2000, -1), strata=4, replicates=4, seed=0, batch_size=4096)
    stated = float(found.standard_error.square().mean().sqrt())
    assert stated == pytest.approx(float(found.nelbo.std()), rel=0.1)
    assert found.evaluations == 16
    mean, error = found.mean()
    assert mean == pytest.approx(float(found.per_token.mean()))
    assert error == pytest.approx(float(found.nelbo.std()) / 8 / 2000**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("chain", "length", "at_least"),
    [
        (MarkovDenoiser.lazy(4, 0.85), 64, 2.0),  # correlation 0.8
        (MarkovDenoiser.lazy(8, 0.9), 32, 2.0),  # correlation 0.89
        (random_markov(4, 0), 32, 0.9),  # weakly correlated: not worse
    ],
    ids=["lazy4", "lazy8", "random"],
)
def test_the_variance_is_lower_than_that_of_independent_counts(chain, length, at_least):
    x = sample(chain, torch.full((4, length), chain.mask_id), first_hitting(), seed=0).tokens
    found = variance_ratio(chain, x, evaluations=16, repeats=200)
    assert found.error < 0.15 * found.ratio
    assert found.ratio >= at_least


def test_the_command_prints_every_chain_and_takes_a_model_with_a_task(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["likelihood", "--sequences", "2", "--evaluations", "4", "--repeats", "20", "--json"]
    )
    main()
    report = json.loads(capsys.readouterr().out)
    assert (report["repeats"], len(report["rows"])) == (20, len(CHAINS))
    assert all(row["ratio"] > 0.3 and row["deviation"] > 0 for row in report["rows"])
    monkeypatch.setattr("sys.argv", ["likelihood", "--model", "sudoku"])
    with pytest.raises(SystemExit):
        main()

    class Grids:
        def examples(self, split: str):
            assert split == "validation"
            where = torch.arange(81) < 40
            return [(torch.tensor(puzzle.solution), where) for puzzle in demo_puzzles()[:2]]

    named = types.ModuleType("unmask.tasks.named")
    named.__dict__["named_task"] = lambda name: Grids()
    monkeypatch.setitem(sys.modules, "unmask.tasks.named", named)
    (row,) = on_model("sudoku", "grids", 2, 2, 3, 0)
    assert row["tokens"] == 81
    assert row["nelbo"] > 0


def test_an_estimate_does_not_depend_on_batch_mates():
    oracle = random_hmm(3, 3, 0)
    rows = [[0, 1, 2, 2, 1], [2, 0], [1, 1, 1, 0, 2, 2, 0]]
    together = nelbo(oracle, rows, streams=[5, 6, 7], strata=4, batch_size=5)
    for row, tokens in enumerate(rows):
        alone = nelbo(oracle, [tokens], streams=[5 + row], strata=4, batch_size=64)
        assert float(alone.nelbo[0]) == float(together.nelbo[row])
        assert float(alone.standard_error[0]) == float(together.standard_error[row])


def test_masks_are_uniform_given_their_size_and_disjoint_where_they_can_be():
    asked = []

    class Recording:
        vocab_size, mask_id = 4, 3

        def __call__(self, query: Query) -> torch.Tensor:
            asked.append(query.where)
            return torch.zeros(int(query.where.sum()), 4)

    found = nelbo(Recording(), torch.zeros(4000, 6, dtype=torch.int64), strata=6, replicates=1, seed=0)
    assert torch.allclose(found.nelbo, torch.tensor(6 * math.log(3), dtype=torch.float64))
    masks = torch.cat(asked).reshape(4000, 6, 6)
    assert masks.sum(-1).unique(dim=0).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert not bool((masks[:, 0] & masks[:, 1]).any() | (masks[:, 1] & masks[:, 2]).any())
    share = masks.double().mean(0)  # each position is in a mask of n with probability n/6
    assert float((share - torch.arange(1, 7).unsqueeze(-1) / 6).abs().max()) < 5 * 0.5 / 4000**0.5


def test_time_is_passed_to_those_that_want_it():
    class Timed:
        vocab_size, mask_id, wants_time = 4, 3, True

        def __call__(self, query: Query) -> torch.Tensor:
            assert query.time is not None
            torch.testing.assert_close(query.time, query.where.double().mean(-1))
            return torch.zeros(int(query.where.sum()), 4)

    x = torch.zeros(2, 6, dtype=torch.int64)
    nelbo(Timed(), x, seed=0, schedule=Linear())
    with pytest.raises(ValueError, match="schedule"):
        nelbo(Timed(), x, seed=0)


def test_bad_arguments_are_refused():
    oracle, x = random_table(3, 4, 0), torch.tensor([[0, 1, 2, 0]])
    cases = [
        ({"x": torch.tensor([[0, 3, 1, 1]])}, "contain the mask"),
        ({"maskable": torch.zeros(1, 4, dtype=torch.bool)}, "no token to score"),
        ({"maskable": torch.ones(1, 3, dtype=torch.bool)}, "maskable|size"),
        ({"strata": 0}, "strata"),
        ({"replicates": 0}, "replicates"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": None}, "either seed"),
    ]
    for changes, message in cases:
        with pytest.raises((ValueError, RuntimeError), match=message):
            nelbo(oracle, **{"x": x, "seed": 0, **changes})

    class Broken:
        vocab_size, mask_id = 4, 3

        def __call__(self, query: Query) -> torch.Tensor:
            return torch.full((int(query.where.sum()), 4), math.nan)

    with pytest.raises(LogitsError, match=r"sequence 0, position \d.*NaN"):
        nelbo(Broken(), x, seed=0)


@pytest.mark.parametrize("oracle", [random_table(3, 5, 1), random_markov(3, 2), random_hmm(2, 3, 1)])
def test_with_exact_conditionals_the_chain_is_the_log_likelihood_in_any_order(oracle):
    x = torch.tensor([[0, 2, 1, 1, 0]]).expand(20, -1)
    exact = float(oracle.log_marginal(x[:1]))
    found = chain_log_likelihood(oracle, x, seed=0, batch_size=7)
    torch.testing.assert_close(found, torch.full((20,), exact, dtype=torch.float64), rtol=0, atol=1e-9)
    pinned = torch.where(torch.tensor([True, False, True, True, False]), oracle.mask_id, x)
    found = chain_log_likelihood(oracle, x, maskable=pinned == oracle.mask_id, seed=0)
    expected = exact - float(oracle.log_marginal(pinned[:1]))
    torch.testing.assert_close(found, torch.full((20,), expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_over_orders_the_chain_averages_to_the_nelbo():
    """Mean over 4,000 orders against enumeration, 4 standard errors: fails one run in 16,000."""
    denoiser = PerturbedDenoiser(random_table(3, 5, 1), 1.0)
    x = torch.tensor([0, 2, 1, 1, 0])
    maskable = torch.tensor([[True, True, False, True, True]]).expand(4000, -1)
    found = chain_log_likelihood(denoiser, x.expand(4000, -1), maskable=maskable, seed=0, batch_size=4096)
    assert float(found.std()) > 0.01  # here the order matters
    error = float(found.std()) / 4000**0.5
    assert abs(float(found.mean()) + enumerated(denoiser, x, [0, 1, 3, 4])) <= 4 * error


def test_a_chain_is_judged_in_the_order_of_its_stream_whatever_the_batch():
    denoiser = PerturbedDenoiser(random_table(3, 5, 1), 1.0)
    rows = [[0, 1, 2, 2, 1], [1, 1, 2, 0, 0], [0, 1, 2, 2, 1]]
    together = chain_log_likelihood(denoiser, rows, streams=[5, 6, 7], batch_size=4)
    for row, tokens in enumerate(rows):
        alone = chain_log_likelihood(denoiser, [tokens], streams=[5 + row])
        assert float(alone[0]) == float(together[row])
    assert float(together[0]) != float(together[2])
    asked = []

    class Recording:
        vocab_size, mask_id = 4, 3

        def __call__(self, query: Query) -> torch.Tensor:
            asked.append((query.x == 3, query.where))
            return torch.zeros(int(query.where.sum()), 4)

    counted = []
    padded = [[0, 1, 2], [1, 0, 1, 1, 0]]
    found = chain_log_likelihood(Recording(), padded, seed=1, batch_size=3, on_batch=counted.append)
    assert found.tolist() == pytest.approx([-3 * math.log(3), -5 * math.log(3)])
    assert counted == [3, 3, 2]
    masked, where = (torch.cat(column) for column in zip(*asked, strict=True))
    # Row 0's padding is masked too, but never asked for.
    assert masked.sum(-1).tolist() == [5, 4, 3, 5, 4, 3, 2, 1]
    assert where.sum(-1).tolist() == [1] * 8
    assert where[:3].any(0).tolist() == [True, True, True, False, False]
    assert bool(where[3:].any(0).all())
    assert bool((where <= masked).all())


def test_a_chain_of_an_impossible_sequence_has_no_probability():
    table = torch.full((2, 2), 0.5)
    table[0, 1] = 0.0
    x = torch.tensor([[0, 1]])
    assert float(chain_log_likelihood(TableDenoiser(table / table.sum()), x, seed=0)) == -math.inf


def test_bad_arguments_of_a_chain_are_refused():
    oracle, x = random_table(3, 4, 0), torch.tensor([[0, 1, 2, 0]])
    cases = [
        ({"x": torch.tensor([[0, 3, 1, 1]])}, "contain the mask"),
        ({"maskable": torch.zeros(1, 4, dtype=torch.bool)}, "no token to score"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": None}, "either seed"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            chain_log_likelihood(oracle, **{"x": x, "seed": 0, **changes})
