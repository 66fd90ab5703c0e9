"""The Sudoku network: its symmetries, its contract, its checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.errors import AdapterError
from unmask.models.networks.checkpoint import load_checkpoint, save_checkpoint
from unmask.models.networks.sudoku import SudokuConfig, SudokuNet

SHIPPED = Path(__file__).parents[1] / "unmask" / "data" / "sudoku"


@pytest.fixture(scope="module")
def net() -> SudokuNet:
    torch.manual_seed(0)
    return SudokuNet(SudokuConfig(channels=16, messages=8, hidden=24, passes=4)).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    digits = torch.randint(1, 10, (9, 81), generator=generator)
    return digits * (torch.rand(9, 81, generator=generator) < 0.4)


def lines(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)])


@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
def test_symmetries_of_the_puzzle_are_symmetries_of_the_network(net: SudokuNet, x: torch.Tensor, seed: int):
    rng = np.random.default_rng(seed)
    cells = np.arange(81).reshape(9, 9)[lines(rng)][:, lines(rng)]
    cells = torch.from_numpy((cells.T if rng.integers(2) else cells).reshape(-1).copy())
    digits = torch.from_numpy(np.concatenate([[0], 1 + rng.permutation(9)]))
    moved = net(digits[x[:, cells]])
    torch.testing.assert_close(moved[:, :, digits], net(x)[:, cells], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_moves_are_no_symmetries(net: SudokuNet, x: torch.Tensor):
    cells = torch.arange(81).reshape(9, 9)[[3, 1, 2, 0, 4, 5, 6, 7, 8]].reshape(-1)  # rows of two bands swapped
    assert (net(x[:, cells]) - net(x)[:, cells])[..., 1:].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_row_does_not_depend_on_the_others(x: torch.Tensor, dtype: torch.dtype, size: int):
    net = load_checkpoint(SHIPPED, dtype=dtype)
    net = SudokuNet(SudokuConfig(**{**vars(net.config), "passes": 3})).to(dtype)
    alone = torch.cat([net(row) for row in x[:size].split(1)])
    assert torch.equal(net(x[:size]), alone)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 9])
def test_selected_cells_are_cells_of_the_whole(net: SudokuNet, x: torch.Tensor, rows: int):
    where = x[:rows] == 0
    where[0] = False if rows > 1 else where[0]  # a row nothing is selected from
    selected = net(x[:rows], where)
    assert selected.shape == (int(where.sum()), 10)
    assert torch.equal(selected, net(x[:rows])[where])


@torch.no_grad()
def test_the_mask_is_never_predicted(net: SudokuNet, x: torch.Tensor):
    logits = net(x)
    assert logits.shape == (9, 81, 10)
    assert logits.dtype == torch.float32
    assert (logits[..., 0] == -math.inf).all()
    assert logits[..., 1:].isfinite().all()


@torch.no_grad()
def test_an_empty_batch_is_a_batch(net: SudokuNet):
    x = torch.zeros(0, 81, dtype=torch.long)
    assert net(x).shape == (0, 81, 10)
    assert net(x, x == 0).shape == (0, 10)


@torch.no_grad()
def test_bfloat16_says_what_float32_says(x: torch.Tensor):
    # The shipped weights on an easy puzzle: the same digits, and marginals within a few percent.
    puzzle = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
    cells = torch.tensor([[int(c) for c in puzzle]])
    where = cells == 0
    wide = load_checkpoint(SHIPPED)(cells, where)
    narrow = load_checkpoint(SHIPPED, dtype=torch.bfloat16)(cells, where)
    assert narrow.dtype == torch.float32
    assert torch.equal(wide.argmax(-1), narrow.argmax(-1))
    assert (wide.softmax(-1) - narrow.softmax(-1)).abs().max() < 0.1


def test_gradients_flow(net: SudokuNet, x: torch.Tensor):
    net(x[:2])[..., 1:].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and (p.grad != 0).any() for p in net.parameters())
    net.zero_grad()


@pytest.mark.parametrize("shape", [(81,), (2, 80), (1, 9, 9)])
def test_wrong_shapes_are_refused(net: SudokuNet, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\(batch, 81\)"):
        net(torch.zeros(shape, dtype=torch.long))


def test_where_of_another_shape_is_refused(net: SudokuNet, x: torch.Tensor):
    with pytest.raises(ValueError, match="where"):
        net(x, torch.ones(9, 80, dtype=torch.bool))


@pytest.mark.parametrize("field", ["channels", "messages", "hidden", "passes"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 1.5, True, "8"])
def test_wrong_sizes_are_refused(field: str, value: object):
    with pytest.raises(ValueError, match=field):
        SudokuConfig(**{field: value})  # type: ignore[arg-type]


@torch.no_grad()
def test_a_checkpoint_comes_back(net: SudokuNet, x: torch.Tensor, tmp_path: Path):
    save_checkpoint(tmp_path / "new" / "folder", net, {"steps": 7})
    again = load_checkpoint(tmp_path / "new" / "folder")
    assert again.config == net.config
    assert not again.training
    assert torch.equal(again(x), net(x))
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config["format"] == "unmask/1"
    assert (config["vocab_size"], config["mask_id"]) == (10, 0)
    assert config["training"] == {"steps": 7}
    assert not list((tmp_path / "new" / "folder").glob(".*"))  # nothing temporary is left


def test_an_unwritable_configuration_leaves_the_old_checkpoint(net: SudokuNet, tmp_path: Path):
    save_checkpoint(tmp_path, net)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, SudokuNet(SudokuConfig(4, 4, 4, 1)), {"not": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign", "folder"])
def test_a_damaged_file_is_named(net: SudokuNet, tmp_path: Path, name: str, damage: str):
    save_checkpoint(tmp_path, net)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[:-9], "foreign": b"\x80\x04PK\xff" * 50}[damage])
    with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "unmask/2"),
        ("network", "maze"),
        ("vocab_size", 11),
        ("mask_id", 9),
        ("config", {"channels": 16, "layers": 3}),
        ("config", {"channels": -1}),
        ("config", None),
    ],
)
def test_a_foreign_configuration_is_refused(net: SudokuNet, tmp_path: Path, key: str, value: object):
    save_checkpoint(tmp_path, net)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(AdapterError, match=key):
        load_checkpoint(tmp_path)


def test_tensors_that_do_not_fit_are_named(net: SudokuNet, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path, net)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["stranger"] = tensors.pop("box")
    tensors["head"] = torch.zeros(3)
    tensors["norm"] = torch.ones(16, dtype=torch.int64)
    tensors["head_norm"][0] = math.nan
    save_file(tensors, path)
    with pytest.raises(AdapterError) as caught:
        load_checkpoint(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing tensors: box" in message
    assert "unexpected tensors: stranger" in message
    assert "head has shape (3,), expected (16,)" in message
    assert "norm has type torch.int64" in message
    assert "head_norm holds NaN" in message


@torch.no_grad()
def test_the_shipped_network_solves_a_puzzle_one_cell_at_a_time():
    net = load_checkpoint(SHIPPED)
    puzzle = "000000907000420180000705026100904000050000040000507009920108000034059000507000000"
    solution = "462831957795426183381795426173984265659312748248567319926178534834259671517643892"
    x = torch.tensor([[int(c) for c in puzzle]])
    while (x == 0).any():
        where = x == 0
        logits = net(x, where)
        entropy = torch.distributions.Categorical(logits=logits[:, 1:]).entropy()
        best = int(entropy.argmin())
        x[0, where[0].nonzero()[best]] = logits[best].argmax()
    assert "".join(map(str, x[0].tolist())) == solution


def test_the_shipped_checkpoint_is_small():
    assert (SHIPPED / "model.safetensors").stat().st_size < 1_000_000
    assert (SHIPPED / "README.md").stat().st_size > 0
