"""A small masked network for 9x9 Sudoku, without timestep conditioning, equivariant to all symmetries of a puzzle."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...checks import whole

MASK_ID = 0
VOCAB_SIZE = 10
LENGTH = 81

GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


@dataclass(frozen=True)
class SudokuConfig:
    """Sizes of a `SudokuNet`.

    Attributes:
        channels: Features per cell and digit.
        messages: Features of the messages that a cell and digit send to their units.
        hidden: Hidden size of the block's MLP.
        passes: How often the one shared block is applied; may be changed after training.

    Raises:
        ValueError: If one of them is not a whole number from 1 to 4096.
    """

    channels: int = 48
    messages: int = 32
    hidden: int = 96
    passes: int = 16

    def __post_init__(self) -> None:
        for name in ("channels", "messages", "hidden", "passes"):
            whole(f"SudokuConfig.{name}", getattr(self, name), 1, 4096)


class SudokuNet(nn.Module):
    """Marginals of the masked cells of a Sudoku, from one small block applied many times.

    The state is a vector of `channels` features for every cell *and digit*: 81 x 9 vectors. A token enters as one of
    three learned embeddings per digit: the cell is masked, holds this digit, or holds another. One pass (a residual
    block with pre-RMSNorm; the embedded input is added again before each pass) computes messages and sums them over

    - the nine digits of a cell,
    - the cells of a row, column or box (for one digit), and of the three-cell segments in which a box meets a line,

    and gives the sums back to every member through a two-layer MLP. The weights are the same for all cells, digits and
    passes, and for rows and columns. So the network is equivariant to the symmetries of the puzzle: relabelling digits,
    permuting rows within a band, bands, columns within a stack, and stacks, and transposing. The units are built into
    the network; what they mean (no digit twice) is learned. Nothing in the network checks the rules or searches.

    Args:
        config: Sizes; the default is the network the package ships.
    """

    def __init__(self, config: SudokuConfig | None = None) -> None:
        super().__init__()
        self.config = config = SudokuConfig() if config is None else config
        c, k, h = config.channels, config.messages, config.hidden
        self.embedding = nn.Parameter(0.5 * torch.randn(3, c))
        self.norm = nn.Parameter(torch.ones(c))
        self.project = nn.Parameter(torch.randn(k + h, c) / math.sqrt(c))
        self.bias = nn.Parameter(torch.zeros(k + h))
        # The inputs are sums of nine (or three) messages, hence a third of the usual scale; for the four kinds of sum
        # together, half of that.
        self.cell = nn.Parameter(torch.randn(h, k) / math.sqrt(k) / 6)
        self.line = nn.Parameter(torch.randn(h, k) / math.sqrt(k) / 6)
        self.box = nn.Parameter(torch.randn(h, k) / math.sqrt(k) / 6)
        self.segment = nn.Parameter(torch.randn(h, k) / math.sqrt(k) / 6)
        self.update = nn.Parameter(torch.randn(c, h) / math.sqrt(h) / 2)
        self.head_norm = nn.Parameter(torch.ones(c))
        self.head = nn.Parameter(0.1 * torch.randn(c))

    def embed(self, x: Int[Tensor, "batch 81"]) -> Float[Tensor, "batch 3 3 3 3 9 channels"]:
        """Returns the embedded input, with the axes batch, band, row, stack, column, digit and channel."""
        cells = x.reshape(len(x), 3, 3, 3, 3, 1)
        kind = torch.where(cells == MASK_ID, 0, torch.where(cells == torch.arange(1, 10, device=x.device), 1, 2))
        return F.one_hot(kind, 3).to(self.embedding.dtype) @ self.embedding

    def refine(
        self, state: Float[Tensor, "batch 3 3 3 3 9 channels"], embedded: Float[Tensor, "batch 3 3 3 3 9 channels"]
    ) -> Float[Tensor, "batch 3 3 3 3 9 channels"]:
        """Applies the block once: returns the next state, given a state and the embedded input."""
        k = self.config.messages
        state = state + embedded
        normed = F.rms_norm(state, (self.config.channels,), self.norm, 1e-6)
        message = _gelu(F.linear(normed, self.project[:k], self.bias[:k]))
        in_row, in_column = message.sum(4), message.sum(2)  # segments of a row in a box, of a column in a box
        by_row = (
            F.linear(in_row, self.segment)
            + F.linear(in_row.sum(3), self.line).unsqueeze(3)
            + F.linear(in_row.sum(2), self.box).unsqueeze(2)
        )
        by_column = F.linear(in_column, self.segment) + F.linear(in_column.sum(1), self.line).unsqueeze(1)
        by_cell = F.linear(message.sum(5), self.cell)
        hidden = F.linear(normed, self.project[k:], self.bias[k:])
        hidden = hidden.add_(by_cell.unsqueeze(5)).add_(by_row.unsqueeze(4)).add_(by_column.unsqueeze(2))
        return state + F.linear(_gelu(hidden), self.update)

    def read(self, state: Float[Tensor, "*cells 9 channels"]) -> Float[Tensor, "*cells 10"]:
        """Returns the logits over the ten tokens, in float32 or wider; the mask token's is `-inf`."""
        wide = torch.promote_types(state.dtype, torch.float32)
        state = F.rms_norm(state.to(wide), (self.config.channels,), self.head_norm.to(wide), 1e-6)
        return F.pad((state * self.head.to(wide)).sum(-1), (1, 0), value=-math.inf)

    def forward(
        self, x: Int[Tensor, "batch 81"], where: Bool[Tensor, "batch 81"] | None = None
    ) -> Float[Tensor, "batch 81 10"] | Float[Tensor, "selected 10"]:
        """Returns the logits of the tokens of every cell, or of the selected cells only.

        Args:
            x: Tokens, row by row: 0 is the mask, 1..9 are digits.
            where: If given, the cells to compute logits for.

        Returns:
            Logits over the ten token ids, in float32 or wider; column 0, the mask token's, is `-inf`. With `where`, one
            row per selected cell, ordered by batch and cell.

        Raises:
            ValueError: If the shape of `x` or of `where` is not `(batch, 81)`.
        """
        if x.ndim != 2 or x.shape[1] != LENGTH:
            raise ValueError(f"x must hold 81 tokens per row, shape (batch, 81), got shape {tuple(x.shape)}")
        if where is not None and where.shape != x.shape:
            raise ValueError(f"where must have the shape of x, {tuple(x.shape)}, got {tuple(where.shape)}")
        if x.device.type != "cpu" or len(x) <= 1:
            return self._logits(x, where)
        # One sequence at a time: it fits the processor's cache, and the sums of its matrix products are rounded in the
        # same order whatever else is in the batch.
        masks = [None] * len(x) if where is None else where.split(1)
        return torch.cat([self._logits(row, mask) for row, mask in zip(x.split(1), masks, strict=True)])

    def _logits(self, x: Tensor, where: Tensor | None) -> Tensor:
        embedded = self.embed(x)
        state = torch.zeros_like(embedded)
        for _ in range(self.config.passes):
            state = self.refine(state, embedded)
        cells = state.reshape(len(x), LENGTH, 9, self.config.channels)
        return self.read(cells if where is None else cells[where])


def _gelu(x: Tensor) -> Tensor:
    """Computes GELU in its tanh form as `x * sigmoid(...)`, on a CPU twice as fast as PyTorch's own function."""
    if torch.is_grad_enabled():
        return x * torch.sigmoid(x * (GELU_LINEAR + GELU_CUBIC * (x * x)))
    square = x * x  # the same operations in place: memory for each of them took a fifth of an evaluation
    return square.mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_().mul_(x)
