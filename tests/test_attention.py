"""Attention as a price of dependence: the benchmark reads the right weights, and its losses are those of the rule."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.attention import MODELS, RESULTS
from benchmarks.attention_frontier import OfContext, at_equal_loss, path_losses
from benchmarks.attention_prices import PROFILE, Watched, Weights, correlation, non_negative, ranks
from unmask import DependenceBound, Entropy, EntropyBound, One, Rule
from unmask.denoiser import NetworkDenoiser, Query
from unmask.models.networks.transformer import Transformer, TransformerConfig
from unmask.models.registry import load
from unmask.rules.profile import Line, Profile

LENGTH, MASK = 8, 5


def tiny(rows: int = 1, channels: int = 1, recurrent: bool = False) -> Watched:
    """A small network with random weights."""
    config = TransformerConfig(6, MASK, LENGTH, rows, channels, 16, 3, 2, 16, recurrent)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(config)
    with torch.no_grad():
        network.head.mul_(30)
    return Watched(NetworkDenoiser(network, 6, MASK, LENGTH))


def tokens(count: int) -> torch.Tensor:
    return torch.randint(0, MASK, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def test_attention_is_that_of_the_evaluation():
    watched = tiny()
    x = tokens(3).index_fill(1, torch.tensor([1, 4]), MASK)
    query = Query.of(x, MASK)
    assert torch.equal(watched(query), watched.inner(query))
    assert len(watched.seen) == 3
    for number, heads in enumerate(watched.seen):
        assert heads.shape == (6, LENGTH, LENGTH)
        assert torch.equal(heads, heads.transpose(1, 2))
        assert torch.allclose(heads.sum((1, 2)), torch.full((6,), float(LENGTH)))  # each position looks once
        network = watched.inner.network
        state = torch.nn.functional.embedding(x[number : number + 1], network.embedding[0])  # pyright: ignore
        first = network.blocks[0].attention(state, network.place, None)[0][0]  # pyright: ignore
        assert torch.allclose(heads[:2], (first + first.transpose(1, 2)) / 2)


def test_a_grid_of_two_channels_attends_in_the_last():
    watched = tiny(rows=2, channels=2, recurrent=True)
    x = tokens(1)
    x[0, 5] = MASK
    watched(Query.of(x, MASK))
    (heads,) = watched.seen
    assert heads.shape == (6, LENGTH, LENGTH)
    assert not heads[:, :4].any()
    assert bool((heads[:, 4:, 4:] > 0).all())


def test_a_model_of_the_transformers_library_gives_its_attention():
    inner = load("chat")
    x = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    x[:, 2] = inner.mask_id
    plain = inner(Query.of(x, inner.mask_id))
    watched = Watched(inner)
    assert torch.allclose(watched(Query.of(x, inner.mask_id)), plain, atol=1e-3)
    assert [tuple(heads.shape) for heads in watched.seen] == [(16, 5, 5)] * 2
    assert torch.allclose(watched.seen[0].sum((1, 2)), torch.full((16,), 5.0), atol=1e-4)
    before = watched.seen[0]
    watched(Query.of(x, inner.mask_id))
    assert torch.equal(watched.seen[0], before)  # nothing of one evaluation is in the next
    layers = before.split(4)
    assert all(float((layers[0] - layer).abs().max()) > 0.01 for layer in layers[1:])


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match="SudokuNet has no attention"):
        Watched(load("sudoku"))


def test_weights_that_were_planted_are_found():
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(4, 500, generator=generator, dtype=torch.float64)
    planted = torch.tensor([0.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    found = non_negative(features, planted @ features)
    assert torch.allclose(found, planted, atol=0.02)
    assert torch.isclose(found @ features.sum(1), planted @ features.sum(1))


def test_correlations():
    one = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert ranks(torch.tensor([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert correlation(one, 2 * one + 1) == pytest.approx(1)
    assert correlation(one, torch.ones(4)) == 0
    assert correlation(ranks(one), ranks(one.square().neg())) == pytest.approx(-1)


def test_losses_along_the_data_are_those_of_what_is_drawn_together():
    watched, data = tiny(), tokens(4)
    blank = [torch.full((LENGTH,), MASK)] * 4
    nfe, nats = path_losses(watched, Rule(Entropy(), EntropyBound(math.inf)), blank, list(data))
    log_p = watched.inner(Query.of(torch.stack(blank), MASK)).double().log_softmax(-1).view(4, LENGTH, -1)
    assert nfe.tolist() == [1.0] * 4
    assert torch.allclose(nats, -log_p.gather(-1, data.unsqueeze(-1)).sum((1, 2)))
    nfe, nats = path_losses(watched, Rule(Entropy(), One()), blank[:1], list(data[:1]))
    x, expected = blank[0][None].clone(), 0.0
    for _ in range(LENGTH):  # by hand: the least uncertain position takes the token of the data
        logits = watched.inner(Query.of(x, MASK)).double().log_softmax(-1)
        first = int(torch.distributions.Categorical(logits=logits[:, :MASK]).entropy().argmin())
        place = int((x[0] == MASK).nonzero()[first])
        expected -= float(logits[first, data[0, place]])
        x[0, place] = data[0, place]
    assert nfe.tolist() == [LENGTH]
    assert float(nats) == pytest.approx(expected)


def test_prices_of_a_profile_alone_are_the_dependence_bound():
    """And attention makes another rule of it: the wiring of rows, places and heads is not idle."""
    watched, data = tiny(), tokens(6)
    blank = [torch.full((LENGTH,), MASK)] * 6
    profile = Profile.empty(Line.of(LENGTH))
    nothing = torch.zeros(6, dtype=torch.float64)

    def run(bound: DependenceBound) -> list[list[float]]:
        return [values.tolist() for values in path_losses(watched, Rule(Entropy(), bound), blank, list(data))]

    plain = run(DependenceBound(0.5, profile))
    assert run(OfContext(0.5, profile, watched=watched, weights=Weights(0.0, nothing, 1.0))) == plain
    looking = Weights.of(Weights(0.0, torch.full((6,), 0.01, dtype=torch.float64)).as_dict())
    assert sum(run(OfContext(0.5, profile, watched=watched, weights=looking))[0]) < sum(plain[0])


def test_evaluations_at_equal_loss():
    """A price that takes half the evaluations at every loss."""
    generator = torch.Generator().manual_seed(3)
    nfe = torch.tensor([16.0, 8.0, 4.0]).unsqueeze(-1).expand(-1, 40)
    loss = torch.tensor([0.1, 0.3, 1.0]).unsqueeze(-1) + 0.01 * torch.rand(1, 40, generator=generator)
    found = {PROFILE: torch.stack([nfe, loss], 1), "half": torch.stack([nfe / 2, loss], 1)}
    at = at_equal_loss(found, 1)
    assert at["ratios"][PROFILE] == pytest.approx([1.0, 1.0, 1.0])
    assert at["ratios"]["half"] == pytest.approx([0.5, 0.5, 0.5])
    assert at["nfe"] == 8


def test_the_figures_are_what_the_page_says_of_them():
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(report["correlations"]) == set(MODELS)
    found, sampled = report["correlations"], report["frontier"]

    def beyond(name: str, kind: str, price: str) -> int:
        """Whether a price is above (1) or below (-1) the profile by more than the interval, or neither."""
        mean, ci95 = found[name][kind]["to_profile"][price]
        return (mean > ci95) - (mean < -ci95)

    assert all(
        beyond(name, "rank", "all layers") == 1 for name in ("sapiens-vh", "sapiens-vl", "rxnmapper", "maze-loops")
    )
    assert all(beyond(name, "pearson", "all layers") == 1 for name in ("sapiens-vh", "sapiens-vl", "rxnmapper"))
    assert beyond("text", "pearson", "all layers") == beyond("text", "rank", "all layers") == -1
    assert beyond("text", "pearson", "each head") == beyond("text", "rank", "each head") == 0
    for gamma in ("0.1", "0.3"):
        assert sampled["text"]["at_equal_loss"][gamma]["ratios"]["all layers"][1] > 1
        for name in ("sapiens-vh", "sapiens-vl"):
            assert sampled[name]["at_equal_loss"][gamma]["ratios"]["all layers"][2] > 1
    assert sampled["rxnmapper"]["at_equal_loss"]["0.1"]["ratios"]["all layers"][2] < 1
