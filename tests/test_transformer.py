"""The package's Transformer: what it sees and what it does not, on lines, grids and channels; its checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.denoiser import NetworkDenoiser, Query
from unmask.errors import AdapterError
from unmask.models import registry as models
from unmask.models.networks.checkpoint import load_checkpoint, save_checkpoint
from unmask.models.networks.transformer import Transformer, TransformerConfig
from unmask.schedule import SCHEDULES

LINE = TransformerConfig(vocab_size=6, mask_id=5, length=12, width=16, depth=2, heads=2, mlp=24)
GRID = replace(LINE, rows=3)
KINDS = {
    "line": LINE,
    "grid": GRID,
    "channels": replace(LINE, length=24, rows=3, channels=2),
    "recurrent": replace(GRID, recurrent=True, depth=3),
    "positions": replace(LINE, positions=True),
    "time": replace(LINE, time=True),
    "causal": replace(LINE, causal=True),
    "frequencies": replace(LINE, frequencies=True),
}


def network(config: TransformerConfig) -> Transformer:
    torch.manual_seed(2)
    made = Transformer(config).eval()
    with torch.no_grad():
        for block in made.blocks:
            block.bias.normal_()  # pyright: ignore
        made.head.mul_(5)
        if config.frequencies:
            made.frequency.normal_()
    return made


def tokens(config: TransformerConfig, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(0, config.mask_id, (rows, config.length), generator=generator)
    hidden = torch.rand(rows, config.cells, generator=generator) < 0.6
    x[:, -config.cells :].masked_fill_(hidden, config.mask_id)
    return x


def call(made: Transformer, x: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    time = torch.linspace(0.2, 0.9, len(x)) if made.config.time else None
    with torch.no_grad():
        return made(x, x == made.config.mask_id if where is None else where, time)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_logits_are_those_asked_for_and_never_the_mask(kind: str):
    made = network(KINDS[kind])
    x = tokens(made.config)
    masked = x == made.config.mask_id
    logits = call(made, x)
    assert logits.shape == (int(masked.sum()), 6)
    assert logits.dtype == torch.float32
    assert bool(logits[:, 5].isneginf().all())
    assert bool(logits[:, :5].isfinite().all())
    # The same rows, asked for alone; alone in the batch; and as training computes them, all sequences at once.
    part = masked & (torch.arange(x.shape[1]) % 2 == 0)
    torch.testing.assert_close(call(made, x, part), logits[part[masked]], atol=0, rtol=0)
    last = masked.sum(1)[-1]
    if not made.config.time:
        torch.testing.assert_close(call(made, x[-1:]), logits[-last:], atol=0, rtol=0)
    time = torch.linspace(0.2, 0.9, 3) if made.config.time else None
    torch.testing.assert_close(made(x, masked, time).detach()[:, :5], logits[:, :5], atol=1e-4, rtol=1e-4)
    half = load_like(made, torch.bfloat16)
    assert call(half, x).dtype == torch.float32


def load_like(made: Transformer, dtype: torch.dtype) -> Transformer:
    other = Transformer(made.config)
    other.load_state_dict(made.state_dict())
    return other.to(dtype).eval()


def test_a_causal_network_sees_what_comes_before_and_nothing_else():
    made = network(KINDS["causal"])
    x = torch.arange(12).remainder(5).unsqueeze(0)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    plain = call(made, x, everywhere)
    for place in range(12):
        changed = x.clone()
        changed[0, place] = 5
        moved = (call(made, changed, everywhere) - plain)[:, :5].abs().amax(1) > 0
        assert not bool(moved[: place + 1].any())
        assert bool(moved[place + 1 :].all())


def test_a_grid_is_told_by_rows_and_columns_apart():
    line, grid = network(LINE), network(GRID)
    place = grid.place
    for a in range(12):
        for b in range(12):
            for c in range(12):
                d = c + b - a
                apart = (b // 4 - a // 4, b % 4 - a % 4)
                if 0 <= d < 12 and (d // 4 - c // 4, d % 4 - c % 4) == apart:
                    assert place[a, b] == place[c, d]
    assert len(place.unique()) == (2 * 3 - 1) * (2 * 4 - 1)
    assert len(line.place.unique()) == 2 * 12 - 1


@pytest.mark.parametrize("kind", ["line", "grid"])
def test_reading_backwards_with_reversed_biases_gives_the_same(kind: str):
    made, x = network(KINDS[kind]), tokens(KINDS[kind], 1)
    mirror = load_like(made, torch.float32)
    plain = call(made, x)
    torch.testing.assert_close(call(mirror, x), plain, atol=0, rtol=0)
    assert not torch.allclose(call(mirror, x.flip(1)).flip(0)[:, :5], plain[:, :5], atol=1e-2)
    with torch.no_grad():
        for block in mirror.blocks:
            block.bias.copy_(block.bias.flip(0))  # pyright: ignore
    torch.testing.assert_close(call(mirror, x.flip(1)).flip(0)[:, :5], plain[:, :5], atol=1e-4, rtol=1e-4)


def test_channels_are_added_and_only_the_last_is_predicted():
    made = network(KINDS["channels"])
    x = tokens(made.config)
    plain = call(made, x)
    changed = x.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 5
    assert bool((call(made, changed) != plain).any(1).all())
    where = torch.zeros_like(x, dtype=torch.bool)
    where[0, 11] = True
    with pytest.raises(ValueError, match="only the last 12 tokens of a sequence are predicted"):
        made(x, where)


def test_a_timed_network_needs_the_time_and_heeds_it():
    made = network(KINDS["time"])
    x = tokens(made.config)
    with pytest.raises(ValueError, match="conditioned on time"):
        made(x, x == 5)
    with torch.no_grad():
        early, late = (made(x, x == 5, torch.full((3,), time)) for time in (0.1, 0.9))
    assert bool((early != late).any(1).all())
    denoiser = NetworkDenoiser(made, 6, 5, 12, wants_time=True)
    answers = tokens(made.config).masked_fill(x == 5, 1)
    with pytest.raises(ValueError, match="is conditioned on time"):
        unmask.nelbo(denoiser, answers, seed=0)
    assert bool(unmask.nelbo(denoiser, answers, seed=0, schedule=SCHEDULES["linear"]).nelbo.isfinite().all())


def test_frequencies_are_added_to_the_logits():
    made = network(KINDS["frequencies"])
    x = tokens(made.config)
    found = call(made, x)
    added = made.frequency.detach().clone()
    with torch.no_grad():
        made.frequency.zero_()
    torch.testing.assert_close(
        found - call(made, x), added.where(torch.arange(6) != 5, torch.nan).expand_as(found), equal_nan=True
    )


def test_wrong_shapes_and_sizes_are_refused():
    made = network(LINE)
    x = tokens(LINE)
    with pytest.raises(ValueError, match=r"shape \(batch, 12\), got \(3, 11\)"):
        made(x[:, :11], x[:, :11] == 5)
    with pytest.raises(ValueError, match="where must have the shape of x"):
        made(x, x[:2] == 5)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"width": 15}, "width 15 is not a multiple of heads 2"),
        ({"rows": 5}, "length 12 is not a multiple of rows x channels = 5 x 1"),
        ({"rows": 3, "channels": 3}, "length 12 is not a multiple of rows x channels = 3 x 3"),
        ({"mask_id": 6}, "mask_id 6 is outside the vocabulary"),
        ({"depth": 0}, "depth must be a whole number from 1 to 1048576, got 0"),
        ({"mlp": True}, "mlp must be a whole number from 1 to 1048576, got True"),
        ({"causal": True, "rows": 3}, "a causal network is for a line"),
        ({"causal": True, "time": True}, "a causal network is for a line"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            replace(LINE, **change)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_back_the_network(tmp_path: Path, kind: str):
    made = network(KINDS[kind])
    save_checkpoint(tmp_path, made, schedule="cosine")
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == made.config
    x = tokens(made.config)
    assert isinstance(loaded, Transformer)
    torch.testing.assert_close(call(loaded, x), call(made, x), atol=0, rtol=0)
    denoiser = models.load(tmp_path)
    assert denoiser.wants_time == made.config.time
    assert (denoiser.vocab_size, denoiser.mask_id) == (6, 5)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path):
    made = network(GRID)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"

    def saved() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        save_checkpoint(tmp_path, made)
        return json.loads(config.read_text()), load_file(weights)

    about, tensors = saved()
    for change, message in [
        ({"mask_id": 4}, "says mask_id = 4, expected 5"),
        ({"vocab_size": 9}, "says vocab_size = 9, expected 6"),
        ({"length": 13}, "says length = 13, expected 12"),
        ({"network": "rnn"}, "says network = 'rnn', expected one of sudoku, transformer"),
        ({"format": "unmask/9"}, "says format = 'unmask/9', expected 'unmask/1'"),
        ({"config": {**asdict(GRID), "rows": 5}}, "does not describe a transformer .*not a multiple of rows"),
        ({"config": {**asdict(GRID), "colour": 5}}, "does not describe a transformer .*colour"),
        ({"config": {**asdict(GRID), "depth": 3}}, r"missing tensors: blocks\.2\.attention_norm"),
        ({"config": {**asdict(GRID), "width": 32}}, r"head has shape \(6, 16\), expected \(6, 32\)"),
    ]:
        config.write_text(json.dumps({**about, **change}))
        with pytest.raises(AdapterError, match=message):
            models.load(tmp_path)
    saved()
    for change, message in [
        ({"extra": torch.zeros(2)}, "unexpected tensors: extra"),
        ({"head": torch.full((6, 16), torch.nan)}, "head holds NaN"),
        ({"head": torch.zeros(6, 16, dtype=torch.long)}, "head has type torch.int64"),
    ]:
        save_file({**tensors, **change}, weights)
        with pytest.raises(AdapterError, match=message):
            models.load(tmp_path)
    saved()
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(AdapterError, match="is not a complete safetensors file"):
        models.load(tmp_path)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"cannot read .*model\.safetensors"):
        models.load(tmp_path)
    config.write_text("[]")
    with pytest.raises(AdapterError, match="holds a JSON list"):
        models.load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a compiler")
def test_a_compiled_network_agrees_in_batches_of_any_size():
    denoiser = models.load("sudoku")
    compiled = denoiser.compiled()
    x = torch.randint(0, 9, (5, 81), generator=torch.Generator().manual_seed(0))
    x[:, ::2] = denoiser.mask_id
    for rows in (5, 3):
        query = Query(
            x[:rows], x[:rows] == denoiser.mask_id, torch.ones(rows, 81, dtype=torch.bool), torch.arange(rows)
        )
        torch.testing.assert_close(compiled(query), denoiser(query), rtol=0, atol=1e-4)
    assert compiled.network is not denoiser.network
