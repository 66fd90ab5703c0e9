"""The dependence profile against exact mutual information, and what it says where nothing was measured."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from unmask import FullDenoiser, LeftToRight, One, Rule, derive, sample
from unmask.denoiser import Query
from unmask.dependence.calibrate import measure_profile
from unmask.draws.categorical import divergence
from unmask.errors import AdapterError, LogitsError
from unmask.oracles import MarkovDenoiser, Oracle, random_hmm, random_markov, random_table
from unmask.rules.profile import Line, Profile, Relations


def data(oracle: Oracle, length: int, count: int, seed: int = 0) -> torch.Tensor:
    return sample(oracle, torch.full((count, length), oracle.mask_id), Rule(LeftToRight(), One()), seed=seed).tokens


def exact(oracle: Oracle, length: int, profile: Profile, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected sum of movements and their expected number per context, by class and masked share: by enumeration."""
    total, count = torch.zeros(2, *profile.count.shape, dtype=torch.float64)
    points, log_p = oracle.completions(torch.full((length,), oracle.mask_id))
    for n in range(2, length + 1):
        masks = list(itertools.combinations(range(length), n))
        fraction = math.ceil(n / length * profile.fractions - 1e-9) - 1
        for mask in masks:
            context = points.clone()
            context[:, list(mask)] = oracle.mask_id
            for i, j in itertools.permutations(mask, 2):
                # I = E_{x_j, x_i} log p(x_i, x_j | c) / p(x_i | c) p(x_j | c), over data and context together.
                both, one, other = context.clone(), context.clone(), context.clone()
                both[:, [i, j]] = points[:, [i, j]]
                one[:, i], other[:, j] = points[:, i], points[:, j]
                gain = oracle.log_marginal(both) + oracle.log_marginal(context)
                gain = gain - oracle.log_marginal(one) - oracle.log_marginal(other)
                weight = min(draws, n) / n / len(masks) / (length - 1)
                number = int(profile.geometry.pairs(torch.tensor(i), torch.tensor(j)))
                total[number, fraction] += weight * float((log_p.exp() * gain).sum())
                count[number, fraction] += weight
    return total, count


def two_halves(length: int) -> Relations:
    side = torch.arange(length) * 2 // length
    return Relations((side.unsqueeze(-1) != side).long(), ("same half", "other half"))


@pytest.mark.parametrize(
    ("oracle", "length", "geometry"),
    [
        (MarkovDenoiser.lazy(2, 0.8), 5, Line.of(5)),
        (random_markov(3, 2), 4, Line((1, 3))),
        (random_hmm(2, 3, 1), 4, Line.of(4)),
        (random_table(3, 4, 5), 4, two_halves(4)),
        (random_table(2, 5, 6), 5, Line.of(5)),
    ],
)
@pytest.mark.parametrize("draws", [1, 4])
def test_the_mean_movement_is_the_mutual_information(oracle, length, geometry, draws):
    """Every cell within 4 standard errors of the exact value: some 100 cells, so one correct run in 150 would fail."""
    profile = Profile.empty(geometry, fractions=4)
    measured = measure_profile(oracle, data(oracle, length, 3000), profile, draws=draws, seed=1, batch_size=1000)
    total, count = exact(oracle, length, profile, draws)
    seen = count > 0
    assert torch.equal(measured.count > 0, seen)
    assert bool((measured.error[seen] > 0).all() | (measured.mean[seen] == 0).any())
    z = (measured.mean - total / count)[seen] / measured.error[seen].clamp(min=1e-12)
    assert float(z.abs().max()) < 4
    assert float(z.abs().max()) > 0.1  # the errors are no excuse
    torch.testing.assert_close((measured.count / 3000)[seen], count[seen], rtol=0.1, atol=0.01)
    masked = torch.arange(2, length + 1)
    spent = float(sum(1 + min(draws, int(n)) for n in masked)) / (length - 1)
    assert measured.evaluations / 3000 == pytest.approx(spent, rel=0.03)
    assert measured.measured == 3000


def test_errors_are_those_of_independent_repetitions():
    """The spread of 40 measurements against their stated errors; their ratio is within 0.6 to 1.5 (99.9 %)."""
    oracle = random_hmm(2, 3, 1)
    runs = [
        measure_profile(oracle, data(oracle, 5, 150, seed=7 + r), Profile.empty(Line.of(5), 2), seed=r)
        for r in range(40)
    ]
    means, errors = torch.stack([run.mean for run in runs]), torch.stack([run.error for run in runs])
    ratio = means.std(0) / errors.square().mean(0).sqrt()
    assert float(ratio.nan_to_num(1.0).min()) > 0.6
    assert float(ratio.nan_to_num(1.0).max()) < 1.5


def test_a_known_token_between_screens_a_chain_completely():
    oracle = MarkovDenoiser.lazy(3, 0.7)
    measured = measure_profile(oracle, data(oracle, 7, 400), Profile.empty(Line.of(7)), seed=0)
    shares = measured.total.sum((1, 3)) / measured.smaller.sum((1, 3))
    assert float(shares[1:, 1].max()) < 1e-12
    assert bool((shares[:, 0].diff() < 0).all())  # and the rest falls with distance
    assert float(measured.pairs[0, :, 1].sum()) == 0  # nothing fits between neighbours
    assert float(measured.prices()[1:, :, 1].max()) < 1e-12


def test_a_sequence_is_measured_alike_in_any_batch_and_parts_add_up():
    oracle = random_hmm(3, 3, 2)
    x, empty = data(oracle, 6, 50), Profile.empty(Line.of(6))
    streams = [derive(3, row) for row in range(50)]
    whole = measure_profile(oracle, x, empty, seed=3, batch_size=64)
    parts = measure_profile(oracle, x[:20], empty, streams=streams[:20], batch_size=7)
    parts = measure_profile(oracle, x[20:], parts, streams=streams[20:], batch_size=9)
    separate = measure_profile(oracle, x[20:], empty, streams=streams[20:])
    for other in (parts, separate + measure_profile(oracle, x[:20], empty, streams=streams[:20])):
        torch.testing.assert_close(other.total, whole.total)
        assert torch.equal(other.pairs, whole.pairs)
        assert (other.measured, other.evaluations) == (whole.measured, whole.evaluations)
    twice = measure_profile(oracle, x, empty, seed=3, repeats=2)
    assert twice.measured == 100
    assert not torch.equal(twice.pairs, 2 * whole.pairs)
    with pytest.raises(ValueError, match="different cells"):
        _ = whole + Profile.empty(Line.of(7))


def test_tokens_that_are_given_stay_given():
    oracle, x = random_markov(3, 1), data(random_markov(3, 1), 6, 30)
    asked = []

    def spy(query: Query) -> torch.Tensor:
        asked.append((query.x, query.where))
        return oracle(query)

    spy.vocab_size, spy.mask_id = 4, 3  # pyright: ignore[reportFunctionMemberAccess]
    maskable = torch.tensor([True, False, True, True, False, True]).expand(30, -1)
    measured = measure_profile(spy, x, Profile.empty(Line.of(6), 6), maskable=maskable, seed=0)  # pyright: ignore
    assert all(bool((tokens[:, [1, 4]] != 3).all()) for tokens, _ in asked)
    assert float(measured.count[:, 4:].sum()) == 0  # at most four of six are masked
    assert measured.evaluations == sum(len(tokens) for tokens, _ in asked)
    ragged = [row[: 3 + index % 4] for index, row in enumerate(x)]
    assert measure_profile(oracle, ragged, Profile.empty(Line.of(6)), seed=0).measured == 30


def test_movements_of_a_certain_model_are_zero_and_not_nan():
    sure = FullDenoiser(lambda x: torch.tensor([0.0, -torch.inf, -torch.inf]).expand(*x.shape, -1).clone(), 3, 2)
    measured = measure_profile(sure, torch.zeros(20, 5, dtype=torch.int64), Profile.empty(Line.of(5)), seed=0)
    assert float(measured.total.abs().sum()) == 0
    assert bool(measured.prices().isfinite().all())
    assert float(measured.prices()[0, -1, 0, 0]) == 0


def test_divergence_is_never_negative_and_ignores_the_mask_token():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert float(divergence(logits, logits, [4]).max()) == 0
    shifted = logits.clone()
    shifted[:, 4] = 50.0
    assert float(divergence(shifted, logits, [4]).max()) == 0
    p, q = torch.tensor([[0.25, 0.75, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    truth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(divergence(p.log(), q.log(), [2])) == pytest.approx(truth)


def test_what_is_unknown_is_priced_at_its_entropy():
    empty = Profile.empty(Line.of(4), fractions=2, levels=(0.1,))
    assert bool((empty.prices() == 1).all())
    assert bool((empty.prices(scaled=False) == math.inf).all())
    assert bool((empty.prices(quantile=0.9) >= 1).all())
    assert bool(empty.mean.isnan().all())


def test_prices_are_means_blended_with_their_parents():
    profile = Profile.empty(Line((1, 2)), fractions=2, levels=(0.1,))
    for tensor, near in ((profile.pairs, 10.0), (profile.contexts, 10.0), (profile.total, 2.0), (profile.smaller, 4.0)):
        tensor[0, 1, 0, 1] = near
    assert float(profile.prices(prior=0)[0, 1, 0, 1]) == 0.5
    # One cell only: parents say the same, and so do its neighbours, fractions and levels; the next class copies.
    for prior in (0.0, 5.0):
        assert bool((profile.prices(prior=prior)[:, :, 0] == 0.5).all())
        assert bool((profile.prices(prior=prior)[:, :, 1] == 1).all())  # nothing is known of screened pairs
        assert bool((profile.prices(scaled=False, prior=prior)[:, :, 0] == 0.2).all())
    for tensor, far in ((profile.pairs, 5.0), (profile.contexts, 5.0), (profile.total, 0.0), (profile.smaller, 1.0)):
        tensor[0, 0, 0, 1] = far
    parent = 2 / 5
    assert float(profile.prices(prior=5)[0, 0, 0, 1]) == pytest.approx((5 * 0.0 + 5 * parent) / 10)
    assert float(profile.prices(prior=5)[0, 1, 0, 1]) == pytest.approx((10 * 0.5 + 5 * parent) / 15)
    assert float(profile.pooled("fraction").prices(prior=0)[0, 0, 0, 1]) == pytest.approx(parent)
    with pytest.raises(ValueError, match="prior"):
        profile.prices(prior=-1.0)
    for quantile, scaled in ((1.0, True), (0.5, False)):
        with pytest.raises(ValueError, match="quantiles"):
            profile.prices(quantile=quantile, scaled=scaled)
    with pytest.raises(ValueError, match="unknown axis 'distance'"):
        profile.pooled("distance")


def test_quantiles_are_ordered_and_bound_the_share_of_movements_above_them():
    oracle = random_table(3, 5, 1)
    measured = measure_profile(oracle, data(oracle, 5, 1500), Profile.empty(Line.of(5), 2, (0.5,)), seed=0)
    low, high = (measured.prices(quantile=q, prior=0) for q in (0.5, 0.95))
    assert bool((low <= high).all())
    shares = measured.moves / measured.pairs.unsqueeze(-1)
    for number in range(4):
        if float(measured.pairs[number, -1, 0, -1]) > 100:
            from unmask.rules.profile import share_bin

            above = shares[number, -1, 0, -1, int(share_bin(float(high[number, -1, 0, -1]))) + 1 :].sum()
            assert float(above) <= 0.05 + 1e-9


def test_lines_number_distances_and_relations_are_matrices():
    line = Line.of(100, exact=4, growth=1.5)
    assert line.starts[:4] == (1, 2, 3, 4)
    gaps = [b - a for a, b in itertools.pairwise(line.starts)]
    assert gaps == sorted(gaps)
    assert line.pairs(torch.tensor([5, 0, 0]), torch.tensor([4, 4, 99])).tolist() == [0, 3, line.classes - 1]
    assert Line.of(2).starts == Line.of(1).starts == (1,)
    assert line.label(0) == "1"
    assert line.label(line.classes - 1).startswith("≥")
    halves = two_halves(4)
    assert halves.pairs(torch.tensor([0, 0]), torch.tensor([1, 3])).tolist() == [0, 1]
    assert halves.label(1) == "other half"
    with pytest.raises(ValueError, match="sequences of 4 tokens, got 5"):
        halves.check(5)
    for wrong in (torch.ones(2, 3, dtype=torch.int64), torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 7], [7, 0]])):
        with pytest.raises(ValueError, match=r"symmetric|class numbers"):
            Relations(wrong, ("a", "b"))
    for wrong in ((), (2, 3), (1, 1), (1, 3, 2)):
        with pytest.raises(ValueError, match="increase from 1"):
            Line(wrong)


def test_a_profile_survives_its_file(tmp_path):
    oracle = random_markov(3, 1)
    for geometry in (Line.of(6), two_halves(6)):
        profile = Profile.empty(geometry, 3)
        measured = measure_profile(oracle, data(oracle, 6, 40), profile, seed=0)
        measured.save(tmp_path / "p")
        again = Profile.load(tmp_path / "p")
        assert torch.equal(again.prices(), measured.prices())
        assert torch.equal(again.error.nan_to_num(), measured.error.nan_to_num())
        assert (again.measured, again.evaluations) == (40, measured.evaluations)
        assert (again + measured).measured == 80


def test_a_file_that_is_no_profile_is_named(tmp_path):
    with pytest.raises(AdapterError, match="cannot read a dependence profile"):
        Profile.load(tmp_path)
    Profile.empty(Line.of(3)).save(tmp_path)
    text = json.loads((tmp_path / "profile.json").read_text())
    for change, message in (({"format": "other"}, "no dependence profile"), ({"levels": [0.1]}, "tensors should be")):
        (tmp_path / "profile.json").write_text(json.dumps({**text, **change}))
        with pytest.raises(AdapterError, match=message):
            Profile.load(tmp_path)
    (tmp_path / "profile.json").write_text("{")
    with pytest.raises(AdapterError, match=r"profile\.json"):
        Profile.load(tmp_path)


def test_bad_arguments_are_refused():
    oracle, x, empty = random_markov(3, 1), torch.zeros(2, 4, dtype=torch.int64), Profile.empty(Line.of(4))
    cases = [
        ({"x": torch.tensor([[0, 3, 1, 1]])}, "complete sequences"),
        ({"x": torch.tensor([[0]])}, "fewer than two tokens"),
        ({"maskable": torch.zeros(2, 4, dtype=torch.bool)}, "fewer than two tokens"),
        ({"maskable": torch.ones(2, 3, dtype=torch.bool)}, "maskable must have shape"),
        ({"draws": 0}, "draws must be an integer"),
        ({"repeats": True}, "repeats must be an integer"),
        ({"profile": Profile.empty(two_halves(6))}, "sequences of 6 tokens"),
        ({"seed": None}, "either seed"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            measure_profile(**{"denoiser": oracle, "x": x, "profile": empty, "seed": 0, **changes})
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="fractions"):
            Profile.empty(Line.of(3), bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="increasing order"):
        Profile.empty(Line.of(3), levels=(0.3, 0.1))
    broken = FullDenoiser(lambda x: torch.full((*x.shape, 4), torch.nan), 4, 3)
    with pytest.raises(LogitsError, match="NaN"):
        measure_profile(broken, x, empty, seed=0)
    timed = FullDenoiser(lambda x: torch.zeros(*x.shape, 4), 4, 3)
    timed.wants_time = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="ignores the time"):
        measure_profile(timed, x, empty, seed=0)
