"""A small Transformer for masked sequences on a line or a grid; made causal, it serves as a judge of such sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...checks import whole

TIME_FEATURES = 64
"""Size of the sinusoidal time embedding."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and kind of a `Transformer`.

    Attributes:
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token; never predicted.
        length: Tokens per sequence.
        rows: Rows of the grid on which the cells of a sequence lie, row by row; 1 is a line.
        channels: Tokens per cell. A sequence is `channels` grids one after the other, whose embeddings are added cell
            by cell; only the tokens of the last grid are predicted. A maze has two: what each cell is, and the path.
        width: Hidden size; a multiple of `heads`.
        depth: Number of blocks, or of passes through the one block if `recurrent`.
        heads: Attention heads. On a CPU in bfloat16, heads of size 64 are the fastest.
        mlp: Hidden size of a block's MLP.
        recurrent: Whether one block is applied `depth` times, with the embedded input added again before each pass.
        positions: Whether each cell has a learned position embedding, besides the relative attention bias.
        time: Whether the network has timestep conditioning, through an embedding that is added to the input.
        causal: Whether every token is predicted from those before it.
        frequencies: Whether the output has a learned bias per token, for the frequencies of the tokens. Without it the
            hidden states must carry the frequencies; with hundreds of tokens, training then takes long to use context.

    Raises:
        ValueError: If a size is out of range, or the sizes do not fit each other.
    """

    vocab_size: int
    mask_id: int
    length: int
    rows: int = 1
    channels: int = 1
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp: int = 768
    recurrent: bool = False
    positions: bool = False
    time: bool = False
    causal: bool = False
    frequencies: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "rows", "channels", "width", "depth", "heads", "mlp"):
            whole(f"TransformerConfig.{name}", getattr(self, name), 1, 1 << 20)
        if not isinstance(self.mask_id, int) or not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"mask_id {self.mask_id!r} is outside the vocabulary: token ids are 0..{self.vocab_size - 1}"
            )
        if self.length % (self.rows * self.channels):
            raise ValueError(
                f"length {self.length} is not a multiple of rows x channels = {self.rows} x {self.channels}: a sequence"
                " is `channels` grids of `rows` rows"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.causal and (self.rows, self.channels, self.time) != (1, 1, False):
            raise ValueError("a causal network is for a line: it takes neither rows, nor channels, nor time")

    @property
    def cells(self) -> int:
        """The number of cells of the grid."""
        return self.length // self.channels


class Block(nn.Module):
    """Self-attention with a learned relative position bias, and an MLP; both residual, with pre-RMSNorm."""

    def __init__(self, config: TransformerConfig, places: int) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.attention_norm, self.mlp_norm = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(places, config.heads))
        self.qkv, self.out = _matrix(width, 3 * width), _matrix(width, width, 1 / math.sqrt(2 * config.depth))
        self.up, self.down = _matrix(width, config.mlp), _matrix(config.mlp, width, 1 / math.sqrt(2 * config.depth))

    def forward(
        self, state: Float[Tensor, "batch cells width"], place: Int[Tensor, "cells cells"], hidden: Tensor | None
    ) -> Float[Tensor, "batch cells width"]:
        """Returns the next hidden states.

        Args:
            state: The hidden states.
            place: The number of the relative position of each pair of cells, a row of the table of biases.
            hidden: True where the cell of the row must not attend to that of the column; `None`: nowhere.
        """
        weights, values = self.attention(state, place, hidden)
        mixed = (weights @ values).transpose(1, 2).reshape(state.shape)
        state = state + F.linear(mixed, self.out)
        normed = F.rms_norm(state, state.shape[-1:], self.mlp_norm, 1e-6)
        return state + F.linear(F.silu(F.linear(normed, self.up)), self.down)

    def attention(
        self, state: Float[Tensor, "batch cells width"], place: Int[Tensor, "cells cells"], hidden: Tensor | None
    ) -> tuple[Float[Tensor, "batch heads cells cells"], Float[Tensor, "batch heads cells size"]]:
        """Returns how much each cell (row) attends to each other (column), by head, and the values that are mixed.

        Args:
            state: As in `forward`.
            place: As in `forward`.
            hidden: As in `forward`.
        """
        batch, cells, width = state.shape
        normed = F.rms_norm(state, (width,), self.attention_norm, 1e-6)
        q, k, v = F.linear(normed, self.qkv).view(batch, cells, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias[place].permute(2, 0, 1)
        if hidden is not None:
            bias = bias.masked_fill(hidden, -math.inf)
        # Plain matrix products: scaled_dot_product_attention in bfloat16 took half the time of a step on a CPU.
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-1, -2) + bias
        return scores.softmax(-1), v


class Transformer(nn.Module):
    """Marginals of the masked tokens of sequences of one length.

    Blocks with pre-RMSNorm over the cells of a line or grid. Attention has a learned bias for each head and relative
    position: the distance on a line, the rows and columns apart on a grid. The output head is applied only to the
    requested positions.

    A causal network shifts its input by one position, with the mask token first, so that the same call gives the
    distribution of every token given those before it. Masks after a position make no difference to it.

    On a CPU without gradients the sequences of a batch are evaluated one at a time, so that the rounding of a sequence
    does not depend on the others.

    Args:
        config: Sizes and kind.

    Attributes:
        together: Whether to evaluate the sequences of a batch together in that case, too. That is about 1.5 times as
            fast, but the rounding then depends on the batch.
    """

    place: Tensor
    hidden: Tensor | None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.together = config, False
        place, places = _places(config.rows, config.cells // config.rows)
        self.register_buffer("place", place, persistent=False)
        later = torch.ones(config.cells, config.cells, dtype=torch.bool).triu(1) if config.causal else None
        self.register_buffer("hidden", later, persistent=False)
        self.embedding = nn.Parameter(0.5 * torch.randn(config.channels, config.vocab_size, config.width))
        if config.positions:
            self.position = nn.Parameter(0.1 * torch.randn(config.cells, config.width))
        if config.time:
            self.time_in, self.time_out = _matrix(TIME_FEATURES, TIME_FEATURES), _matrix(TIME_FEATURES, config.width)
        self.blocks = nn.ModuleList(Block(config, places) for _ in range(1 if config.recurrent else config.depth))
        if config.rows == 1:
            with torch.no_grad():
                for number, block in enumerate(self.blocks):
                    block.bias.copy_(_neighbours(config.cells, config.heads, number))  # pyright: ignore
        self.head_norm = nn.Parameter(torch.ones(config.width))
        self.head = _matrix(config.width, config.vocab_size, 0.1)
        if config.frequencies:
            self.frequency = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self,
        x: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        time: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits of the tokens at the requested positions.

        Args:
            x: Tokens, the mask token where masked.
            where: True at the requested positions, which are in the last channel.
            time: Diffusion time in `(0, 1]`, for a network with timestep conditioning.

        Returns:
            Logits in float32 or wider, one row per True in `where`, ordered by batch and position; the mask token's is
            `-inf`.

        Raises:
            ValueError: If a shape is wrong, the time is missing, or a requested position is not in the last channel.
        """
        config = self.config
        if x.ndim != 2 or x.shape[1] != config.length:
            raise ValueError(f"x must have shape (batch, {config.length}), got {tuple(x.shape)}")
        if where.shape != x.shape:
            raise ValueError(f"where must have the shape of x, {tuple(x.shape)}, got {tuple(where.shape)}")
        if config.time and (time is None or time.shape != x.shape[:1]):
            raise ValueError("this network is conditioned on time: give the time of each sequence, shape (batch,)")
        known = config.length - config.cells
        if known and bool(where[:, :known].any()):
            raise ValueError(f"only the last {config.cells} tokens of a sequence are predicted; the others are given")
        asked = where[:, known:]
        if torch.is_grad_enabled() or x.device.type != "cpu" or len(x) <= 1 or self.together:
            return self._read(self._encode(x, time)[asked])
        # One sequence at a time: it fits the processor's cache, and the sums of its matrix products are rounded in the
        # same order whatever else is in the batch.
        times = [None] * len(x) if time is None else time.split(1)
        parts = zip(x.split(1), asked.split(1), times, strict=True)
        return torch.cat([self._read(self._encode(row, t)[mask]) for row, mask, t in parts])

    def _encode(self, x: Tensor, time: Tensor | None) -> Float[Tensor, "batch cells width"]:
        config = self.config
        if config.causal:
            x = F.pad(x[:, :-1], (1, 0), value=config.mask_id)
        channels = x.view(len(x), config.channels, config.cells).unbind(1)
        embedded = sum(F.embedding(tokens, table) for tokens, table in zip(channels, self.embedding, strict=True))
        assert isinstance(embedded, Tensor)
        if config.positions:
            embedded = embedded + self.position
        if config.time:
            assert time is not None
            features = F.silu(F.linear(_time_features(time).to(embedded.dtype), self.time_in))
            embedded = embedded + F.linear(features, self.time_out).unsqueeze(1)
        state = embedded
        for index in range(config.depth):
            block = self.blocks[0 if config.recurrent else index]
            state = block(state + embedded if config.recurrent and index else state, self.place, self.hidden)
        return state

    def _read(self, state: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocab"]:
        wide = torch.promote_types(state.dtype, torch.float32)
        normed = F.rms_norm(state.to(wide), (self.config.width,), self.head_norm.to(wide), 1e-6)
        logits = F.linear(normed, self.head.to(wide), self.frequency.to(wide) if self.config.frequencies else None)
        return logits.index_fill(-1, torch.tensor([self.config.mask_id], device=logits.device), -math.inf)


def _matrix(inputs: int, outputs: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(outputs, inputs) * (scale / math.sqrt(inputs)))


def _places(rows: int, columns: int) -> tuple[Int[Tensor, "cells cells"], int]:
    """Returns the number of each pair's relative position (rows and columns apart), and how many numbers there are."""
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    down = row.unsqueeze(1) - row + rows - 1
    right = column.unsqueeze(1) - column + columns - 1
    return down * (2 * columns - 1) + right, (2 * rows - 1) * (2 * columns - 1)


def _neighbours(columns: int, heads: int, block: int) -> Float[Tensor, "places heads"]:
    """Returns the initial relative position biases of a block, for cells on a line.

    The heads attend, in turn, to the cell `block + 1` to the left, to the cell `block + 1` to the right, to nearby
    cells, and to all cells alike.

    With biases of 0 a network cannot distinguish positions until it has learned to, and predicts only the frequencies
    of single tokens until then: for 700 training steps on characters, instead of 100 from these biases.
    """
    away = (columns - 1) - torch.arange(2 * columns - 1, dtype=torch.float32)  # of the key, seen from the query
    reach = 1 + block
    looks = [
        -(away + reach).abs() * 1.5 / (1 + block / 2),
        -(away - reach).abs() * 1.5 / (1 + block / 2),
        -away.abs() / 10,
        torch.zeros_like(away),
    ]
    return torch.stack([looks[head % 4] for head in range(heads)], -1)


def _time_features(time: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
    """Returns sines and cosines of the time, at frequencies from 1 to 1000."""
    frequency = torch.logspace(0, 3, TIME_FEATURES // 2, device=time.device)
    angle = time.float().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
