"""What a sampler asks of a model: logits for the masked positions of a batch, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_Own = TypeVar("_Own", bound="NetworkDenoiser")


@dataclass(frozen=True)
class Query:
    """One evaluation of a batch of partially masked sequences.

    Attributes:
        x: Tokens, with the mask token at masked positions, right-padded with the mask token.
        where: True at the positions whose logits are wanted: masked ones, unless a rule looks at tokens again; never
            padding.
        valid: False at padding. A denoiser must not let padding influence the logits of other positions.
        sequence: The slot of each row's sequence: a number that stays the same when other sequences leave, and by which
            caches find it. Finished sequences have no row; if a rule evaluates ahead, a sequence has several.
        time: Diffusion time of each row in `(0, 1]`, for denoisers that declare `wants_time`; `None` otherwise.
        index: The positions in `where` as indices into the flattened batch, if they are known already; see `rows`.
        block: The number of the block of each position, if the sequences are sampled in blocks.
        stepwise: True for rows that are evaluated autoregressively: in the block of the model's attention that holds
            the first position in `where`, and after it, a position looks at those before it and itself only. `None`
            stands for no row. A denoiser without block-causal attention need not look at it.
    """

    x: Int[Tensor, "batch length"]
    where: Bool[Tensor, "batch length"]
    valid: Bool[Tensor, "batch length"]
    sequence: Int[Tensor, " batch"]
    time: Float[Tensor, " batch"] | None = None
    index: Int[Tensor, " rows"] | None = None
    block: Int[Tensor, "batch length"] | None = None
    stepwise: Bool[Tensor, " batch"] | None = None

    @property
    def rows(self) -> Int[Tensor, " rows"]:
        """The positions in `where` as indices into the flattened batch, in row-major order.

        `values.flatten(0, 1)[query.rows]` equals `values[query.where]`, but does not wait for a device to count them.
        """
        return self.where.flatten().nonzero().squeeze(-1) if self.index is None else self.index

    def narrow(self, rows: Int[Tensor, " kept"] | slice, length: int) -> Query:
        """Asks about some rows only, in the given order, none of which is longer than `length`."""
        time, stepwise = (None if field is None else field[rows] for field in (self.time, self.stepwise))
        x, where, valid = (field[rows, :length] for field in (self.x, self.where, self.valid))
        block = None if self.block is None else self.block[rows, :length]
        return Query(x, where, valid, self.sequence[rows], time, None, block, stepwise)

    def alone(self, row: int, length: int) -> Query:
        """Asks about one row, whose sequence has this length, as if there were no others."""
        return self.narrow(slice(row, row + 1), length)

    @staticmethod
    def of(x: Int[Tensor, "batch length"], mask_id: int) -> Query:
        """Asks for every masked position of full-length sequences."""
        rows = torch.arange(len(x), device=x.device)
        return Query(x, x == mask_id, torch.ones_like(x, dtype=torch.bool), rows)


@runtime_checkable
class Denoiser(Protocol):
    """Anything that maps a `Query` to the logits of its candidate positions.

    Attributes:
        vocab_size: Number of token ids, the mask token included: the last dimension of the logits.
        mask_id: Id of the mask token, in `[0, vocab_size)`. It is never drawn, whatever its logit.

    A denoiser conditioned on time also has `wants_time = True`, and then gets `query.time`. A denoiser with a limit on
    the length of sequences has `max_length`; longer ones are refused before they are evaluated.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the mask token included."""
        ...

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        ...

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        """Returns one row of logits per True in `query.where`, in row-major order (as `logits[query.where]`).

        The rows are the caller's: rules that compare evaluations keep them, so a later call must not overwrite them.

        Rows may be unnormalised and may contain `-inf`. The row of a position may depend on its own sequence only.
        """
        ...


class FullDenoiser:
    """Makes a denoiser from any function that maps tokens to the logits of all positions.

    Args:
        function: Maps tokens `[batch, length]` to logits `[batch, length, vocab_size]`.
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token.

    Only the rows of its output that are asked for are copied and used. Sequences of different lengths are refused: they
    need a denoiser that looks at `query.valid`.
    """

    def __init__(
        self,
        function: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocab"]],
        vocab_size: int,
        mask_id: int,
    ) -> None:
        self.function, self.vocab_size, self.mask_id = function, vocab_size, mask_id

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        if not bool(query.valid.all()):
            raise ValueError("FullDenoiser takes sequences of one length; group them by length, or use query.valid")
        logits = self.function(query.x)
        expected = (*query.x.shape, self.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(f"the denoiser's function returned shape {tuple(logits.shape)}, expected {expected}")
        return logits.flatten(0, 1).index_select(0, query.rows)


class NetworkDenoiser:
    """Makes a denoiser from a module with `forward(x, where) -> logits[rows, vocab]`, such as this package's own.

    A module that is conditioned on time is called as `forward(x, where, time)`.

    Args:
        network: The module; it is put into evaluation mode.
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token.
        length: The only sequence length it takes, or `None` for any.
        wants_time: Whether it is conditioned on time.

    Attributes:
        source: The name or the folder that it was loaded from, where its dependence profile may be; `None` if it was
            made in memory.
    """

    source: str | None = None

    def __init__(
        self,
        network: torch.nn.Module,
        vocab_size: int,
        mask_id: int,
        length: int | None = None,
        wants_time: bool = False,
    ) -> None:
        self.network = network.eval()
        self.vocab_size, self.mask_id, self.length = vocab_size, mask_id, length
        self.wants_time = wants_time
        self.one_by_one = False

    @property
    def device(self) -> torch.device:
        """The device of the network, on which queries must be too."""
        return next(self.network.parameters(), torch.zeros(0)).device

    def compiled(self) -> NetworkDenoiser:
        """Returns this denoiser with its network compiled, for any batch: faster, but its results round differently.

        The first evaluations take a minute or so, and need a compiler (see `torch.compile`). The weights are shared.
        """
        other = copy.copy(self)
        other.network = torch.compile(self.network, dynamic=True)  # pyright: ignore[reportAttributeAccessIssue]
        return other

    def batch_invariant(self: _Own) -> _Own:
        """Returns this denoiser evaluating sequences one by one, so that no bit of its logits depends on the batch.

        Each sequence is evaluated without padding, in matrices whose shapes do not depend on the batch. So sums are
        made in the same order, on one machine with one number of threads. The weights are shared. The speed that
        batches give is lost.
        """
        other = copy.copy(self)
        other.one_by_one = True
        return other

    def named(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Returns logits with `-inf` at ids that are not tokens. Here all ids are tokens (see `LanguageModel`)."""
        return logits

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        if not self.one_by_one or not len(query.x):
            return self.evaluate(query)
        return torch.cat([self.evaluate(query.alone(row, n)) for row, n in enumerate(query.valid.sum(-1).tolist())])

    def evaluate(self, query: Query) -> Float[Tensor, "rows vocab"]:
        """Evaluates a query as one batch."""
        if not bool(query.valid.all()):
            raise ValueError("this network cannot tell padding from masks; sample sequences of one length together")
        if self.length is not None and query.x.shape[1] != self.length:
            raise ValueError(f"this network takes sequences of {self.length} tokens, got {query.x.shape[1]}")
        with torch.inference_mode():
            if self.wants_time:
                return self.network(query.x, query.where, query.time)
            return self.network(query.x, query.where)


def device_of(denoiser: Denoiser) -> torch.device:
    """Returns the device on which a denoiser wants its queries: its `device`, or the CPU if it has none."""
    return getattr(denoiser, "device", torch.device("cpu"))


def check_logits(logits: object, rows: int, vocab_size: int) -> None:
    """Raises `ValueError` unless a denoiser returned a tensor of float logits of the right shape."""
    expected = (rows, vocab_size)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the denoiser returned a {type(logits).__name__}, expected a tensor of float logits {expected}"
        )
    if tuple(logits.shape) != expected or not logits.dtype.is_floating_point:
        raise ValueError(
            f"the denoiser returned {logits.dtype} {tuple(logits.shape)}, expected float logits {expected}: one row"
            " per position asked for, one column per token id"
        )


def check_denoiser(denoiser: Denoiser) -> None:
    """Raises `ValueError` if the mask token is not one of the denoiser's tokens."""
    vocab, mask = denoiser.vocab_size, denoiser.mask_id
    if not isinstance(vocab, int) or vocab < 2:
        raise ValueError(f"vocab_size counts the token ids, mask included, and is at least 2, got {vocab!r}")
    if not isinstance(mask, int) or not 0 <= mask < vocab:
        raise ValueError(f"mask_id {mask!r} is outside the vocabulary: token ids are 0..{vocab - 1}")
