"""What a sampler is given, checked: tokens of one length or several, and the random streams that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Denoiser
from ..draws.categorical import check_draw
from ..draws.streams import as_streams, row_streams

Tokens = Int[Tensor, "batch length"] | Int[Tensor, " length"] | Sequence[Sequence[int] | Int[Tensor, " length"]]


def as_batch(x: Tokens, denoiser: Denoiser) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Right-pads to a matrix of its own and checks that the denoiser can take it.

    Returns:
        The tokens, and where they are no padding.

    Raises:
        ValueError: If `x` holds no token ids, or one outside the vocabulary, or a sequence is longer than the
            denoiser's `max_length`.
    """
    if isinstance(x, Tensor):
        if x.ndim not in (1, 2) or x.dtype.is_floating_point or x.dtype == torch.bool:
            raise ValueError(
                f"tokens are integers of shape (length,) or (batch, length), got {x.dtype} {list(x.shape)}"
            )
        matrix = (x if x.ndim == 2 else x.unsqueeze(0)).to(torch.int64, copy=True)
        valid = torch.ones_like(matrix, dtype=torch.bool)
    else:
        rows = [torch.as_tensor(row) for row in x]
        for index, row in enumerate(rows):
            if row.ndim != 1 or (row.numel() and row.dtype.is_floating_point) or row.dtype == torch.bool:
                raise ValueError(f"sequence {index} is not a list of token ids: {row.dtype} {list(row.shape)}")
        width = max((len(row) for row in rows), default=0)
        device = rows[0].device if rows else None
        matrix = torch.full((len(rows), width), denoiser.mask_id, dtype=torch.int64, device=device)
        valid = torch.zeros_like(matrix, dtype=torch.bool)
        for index, row in enumerate(rows):
            matrix[index, : len(row)] = row
            valid[index, : len(row)] = True
    limit: int | None = getattr(denoiser, "max_length", None)
    if limit is not None and len(matrix) and matrix.shape[1] > limit:
        row = 0 if isinstance(x, Tensor) else max(range(len(matrix)), key=lambda index: len(x[index]))
        raise ValueError(f"sequence {row} has {matrix.shape[1]} tokens, more than the {limit} that the model takes")
    least, largest = matrix.aminmax() if matrix.numel() else (0, 0)
    if not 0 <= int(least) <= int(largest) < denoiser.vocab_size:
        row, position = ((matrix < 0) | (matrix >= denoiser.vocab_size)).nonzero()[0].tolist()
        raise ValueError(
            f"token {int(matrix[row, position])} at sequence {row}, position {position} is outside the vocabulary:"
            f" token ids are 0..{denoiser.vocab_size - 1}, the mask token is {denoiser.mask_id}"
        )
    return matrix, valid


def stream_ids(
    seed: int | None, streams: Iterable[int] | Int[Tensor, " batch"] | None, batch: int, device: torch.device
) -> Int[Tensor, " batch"]:
    """Returns the streams a seed or a list stands for.

    Raises:
        ValueError: If neither or both are given, one is no 64-bit integer, or the number does not fit the batch.
    """
    if (seed is None) == (streams is None):
        raise ValueError(
            "pass either seed=... (row r gets the stream derive(seed, r)) or streams=[...], one a sequence"
        )
    if streams is None:
        assert seed is not None
        return row_streams(seed, batch, device)
    ids = as_streams(streams.tolist() if isinstance(streams, Tensor) else streams, device)
    if len(ids) != batch:
        raise ValueError(f"{len(ids)} streams for a batch of {batch} sequences")
    return ids


def temperatures(
    temperature: float | Float[Tensor, " batch"], batch: int, device: torch.device
) -> Float[Tensor, " batch"]:
    """Returns the temperature of the draw of each sequence, in float64.

    Raises:
        ValueError: If it is not a finite number >= 0, for all or for each sequence.
    """
    check_draw(temperature, None, None)
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=device)
    if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != batch):
        raise ValueError(f"temperature is one number or one per sequence ({batch}), got {tuple(tau.shape)}")
    return tau.expand(batch)
