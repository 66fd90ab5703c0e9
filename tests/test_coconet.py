"""The chorale network: the original's logits, its contract, its checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.errors import AdapterError
from unmask.models.networks.coconet import Coconet, CoconetConfig, load_coconet
from unmask.models.registry import load

SHIPPED = Path(__file__).parents[1] / "unmask" / "data" / "music"
GOLDEN = load_file(Path(__file__).parent / "data" / "coconet-golden.safetensors")


def golden_tokens() -> torch.Tensor:
    return torch.where(GOLDEN["masked"].bool(), 46, GOLDEN["tokens"]).reshape(2, 256)


@pytest.fixture(scope="module")
def shipped() -> Coconet:
    return load_coconet(SHIPPED)


@pytest.fixture(scope="module")
def small() -> Coconet:
    torch.manual_seed(0)
    return Coconet(CoconetConfig(layers=9, filters=8)).eval()


@torch.no_grad()
def test_the_logits_are_those_of_the_original(shipped: Coconet):
    assert sum(parameter.numel() for parameter in shipped.parameters()) == 348_032
    roll = GOLDEN["input"].permute(0, 2, 3, 1)
    torch.testing.assert_close(shipped.cells(roll).permute(0, 3, 1, 2), GOLDEN["logits"], rtol=1e-4, atol=1e-5)
    assert torch.equal(shipped.roll(golden_tokens()), roll)
    notes = GOLDEN["logits"].transpose(2, 3).reshape(2, 256, 46)
    torch.testing.assert_close(shipped(golden_tokens())[..., :46], notes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loaded_denoiser_gives_the_masked_rows():
    denoiser, x = load("music"), golden_tokens()
    assert (denoiser.vocab_size, denoiser.mask_id, denoiser.length) == (47, 46, 256)
    rows = denoiser(unmask.Query.of(x, 46))
    assert rows.shape == (int(GOLDEN["masked"].sum()), 47)
    expected = GOLDEN["logits"].transpose(2, 3).reshape(2, 256, 46)[x == 46]
    torch.testing.assert_close(rows[:, :46], expected, rtol=1e-4, atol=1e-5)
    assert (rows[:, 46] == -math.inf).all()
    with pytest.raises(ValueError, match="256 tokens"):
        denoiser(unmask.Query.of(x[:, :64], 46))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(small: Coconet, dtype: torch.dtype):
    net = Coconet(small.config).to(dtype).eval()
    x = torch.randint(0, 47, (5, 256), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([net(row) for row in x.split(1)])
    assert torch.equal(net(x), alone)
    assert alone.dtype == torch.float32


@torch.no_grad()
def test_a_row_of_the_shipped_network_does_not_depend_on_the_others(shipped: Coconet):
    x = golden_tokens()[[0, 1, 0]]
    assert torch.equal(shipped(x), torch.cat([shipped(row) for row in x.split(1)]))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
def test_selected_notes_are_notes_of_the_whole(small: Coconet, rows: int):
    x = torch.randint(0, 47, (rows, 256), generator=torch.Generator().manual_seed(2))
    where = x > 23
    where[0] = False if rows > 1 else where[0]
    assert torch.equal(small(x, where), small(x)[where])
    assert small(x[:0]).shape == (0, 256, 47)
    assert small(x[:0], where[:0]).shape == (0, 47)


def naive(net: Coconet, roll: torch.Tensor) -> torch.Tensor:
    """The architecture as `config.json` tells it, layer by layer, with PyTorch's own normalisation and convolutions."""
    state = net.state_dict()
    x, kept, last = roll, (0, roll), net.config.layers - 1
    for i in range(last + 1):
        if i == 0:
            h = torch.conv2d(x, state["layers.0.0.weight"], state["layers.0.0.bias"], padding=1)
        else:
            depthwise, dilation = state[f"layers.{i}.0.depthwise.weight"], 1 if i > last - 2 else 2 ** ((i - 1) % 6)
            padding = 0 if i == last else dilation
            h = torch.conv2d(x, depthwise, padding=padding, dilation=dilation, groups=len(depthwise))
            h = torch.conv2d(h, state[f"layers.{i}.0.pointwise.weight"])
        if i < last:
            norm = [state[f"layers.{i}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
            h = torch.nn.functional.batch_norm(h, *norm, eps=1e-5)
        if kept[1].shape != h.shape:
            kept = (i, h)
        elif i == kept[0] + 2 and i != last:
            h = h + kept[1]
            kept = (i, h)
        x = h.relu() if i < last else h
    return x


def test_any_size_follows_the_description_and_gradients_flow(small: Coconet):
    net = Coconet(CoconetConfig(layers=13, filters=6))
    generator = torch.Generator().manual_seed(3)
    for name, buffer in net.named_buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else -0.5))
    roll = torch.rand(2, 46, 64, 8, generator=generator)
    with torch.no_grad():
        expected = naive(net, roll.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    found = net.cells(roll)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and (p.grad != 0).any() for p in net.parameters())


def test_wrong_shapes_are_refused(small: Coconet):
    for shape in [(256,), (2, 255), (1, 4, 64)]:
        with pytest.raises(ValueError, match=r"\(batch, 256\)"):
            small(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="where"):
        small(torch.zeros(1, 256, dtype=torch.long), torch.ones(1, 255, dtype=torch.bool))
    for sizes in ({"layers": 3}, {"filters": 0}, {"filters": True}):
        with pytest.raises(ValueError, match=next(iter(sizes))):
            CoconetConfig(**sizes)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    return tmp_path


def test_a_folder_is_loaded_as_what_it_is(copied: Path):
    assert load(copied).vocab_size == 47
    assert load(copied, dtype=torch.bfloat16).network.layers[0][0].weight.dtype == torch.bfloat16  # type: ignore
    assert load("sudoku").vocab_size == 10


def test_a_damaged_checkpoint_is_refused(copied: Path):
    described = json.loads((copied / "config.json").read_text())
    cases = [
        ({"architecture": {"layers": 20, "filters": 128}}, "does not fit"),
        ({"architecture": {"layers": 21, "filters": 64}}, "has shape"),
        ({"architecture": {"filters": 128}}, "does not describe a Coconet"),
        ({"architecture": {"layers": "21", "filters": 128}}, "does not describe a Coconet"),
        ({"input": {"shape": ["batch", 8, 46, 32]}}, "input and output shapes"),
        (
            {"two_token_views": {"categorical": {"vocab_size": 46, "mask_token_id": 0, "sequence_length": 256}}},
            "tokens",
        ),
    ]
    for changes, message in cases:
        (copied / "config.json").write_text(json.dumps({**described, **changes}))
        with pytest.raises(AdapterError, match=message):
            load(copied)
    (copied / "config.json").write_text(json.dumps(described))
    tensors = load_file(copied / "model.safetensors")
    tensors["layers.3.1.running_var"][5] = math.nan
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(AdapterError, match=r"layers\.3\.1\.running_var holds NaN"):
        load(copied)
    (copied / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="not a complete safetensors"):
        load(copied)
