"""Key/value caches between evaluations: exact where attention is block-causal, approximate elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...denoiser import NetworkDenoiser, Query

if TYPE_CHECKING:
    from ...sampling.conversation import AnyRule

CACHES = ("none", "prefix", "dual", "block-causal")
"""The caches by what they keep: nothing; what is before the open block; before and after it; what cannot change."""


def check_cache(
    cache: str,
    refresh: int | None,
    block_causal: int | None,
    *,
    block_length: int | None = None,
    rule: AnyRule | None = None,
    guidance: float | None = None,
) -> None:
    """Refuses settings of a cache that do not go together.

    Args:
        cache: One of `CACHES`.
        refresh: The cache is computed anew after every `refresh` evaluations of a block; for `prefix` and `dual`.
        block_causal: Block length of the model's attention, if it is block-causal.
        block_length: Tokens per block of an answer.
        rule: The unmasking rule; by default neither the rule nor the block length nor the guidance is checked.
        guidance: Scale of classifier-free guidance.

    Raises:
        ValueError: If there is no such cache, or a setting does not go with it.
    """
    if cache not in CACHES:
        raise ValueError(f"unknown cache {cache!r}; choose one of {', '.join(CACHES)}")
    if refresh is not None:
        if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
            raise ValueError(f"cache_refresh is a whole number of evaluations >= 1, got {refresh!r}")
        if cache not in ("prefix", "dual"):
            raise ValueError(f"cache_refresh is for the caches prefix and dual, which drift; cache {cache!r} is exact")
    if cache == "none":
        return
    if (cache == "block-causal") != (block_causal is not None):
        raise ValueError(
            f"cache {cache!r} does not fit this model: its attention is block-causal, for which"
            " cache='block-causal' is exact"
            if block_causal is not None
            else "cache 'block-causal' is for models whose attention is block-causal (block_causal=... when they are"
            " loaded); this one attends to all positions, for which there are 'prefix' and 'dual'"
        )
    if rule is None:
        return
    if cache != "block-causal" and block_length is None:
        raise ValueError(f"cache {cache!r} keeps what is outside the open block: give block_length")
    if guidance is not None:
        raise ValueError(f"cache {cache!r} does not go with guidance, which evaluates two states of a sequence")
    if not rule.asks_once:
        raise ValueError(f"cache {cache!r} does not go with {rule}, which evaluates several states of a sequence")


def usual_cache(network: object, rule: AnyRule, guidance: float | None) -> str:
    """Returns a cache that changes no answer and goes with a rule and guidance: that of `exact_cache`, or `"none"`.

    Args:
        network: The network of the model.
        rule: The unmasking rule.
        guidance: Scale of classifier-free guidance.
    """
    return exact_cache(network) if guidance is None and rule.asks_once else "none"


def exact_cache(network: object) -> str:
    """Returns `"block-causal"` for a network with such attention, and otherwise `"none"`.

    A network whose keys change with the length of the sequence has no exact cache either.
    """
    if getattr(network, "block_causal", None) is None:
        return "none"
    from .kept import keys_change
    from .masked_lm import MaskedLM

    assert isinstance(network, MaskedLM)
    return "none" if keys_change(network) else "block-causal"


class Cached:
    """A language model with a key/value cache for the sequences of a batch.

    `prefix` and `dual` compute all positions when a block opens, and again after every `refresh` evaluations of it. In
    between, `prefix` computes the positions from the start of the block on, with the cached keys and values of those
    before it, and `dual` computes only those of the block. That is an approximation: the cached keys and values do not
    depend on the tokens that were unmasked since.

    `block-causal` compares tokens and computes only what can have changed. It is exact for any blocks and any rule: a
    finished block is computed once more when the next one opens, and from then on its keys and values are only read.

    Sequences are identified by `Query.sequence`, the slot that a sequence keeps when others leave. Each sequence
    decides on its own when to compute all positions, so the others in its batch change nothing but rounding. One object
    can therefore serve a queue: a new slot replaces the least recently used one, which is computed anew if it comes
    back. Only one state of each sequence is cached.

    Args:
        denoiser: The model: a LLaDA, a Dream, or an adapted Llama or Qwen.
        cache: `"prefix"`, `"dual"` or `"block-causal"`.
        rows: The largest number of sequences that are cached at once.
        refresh: All positions are computed anew after so many evaluations of a block, at least 1 (which is as without a
            cache); default: only when a block opens.

    Raises:
        ValueError: If the model cannot have a cache, or the settings do not go together; in a call, if a sequence
            occurs twice or there are more sequences than `rows`.

    References:
        Wu et al. (2025), arXiv:2505.22618, Fast-dLLM: prefix cache and dual cache. Where output `i - 1` predicts
        position `i` (Dream), the position before the block is computed with it.
    """

    def __init__(self, denoiser: NetworkDenoiser, cache: str, rows: int, refresh: int | None = None) -> None:
        from .kept import KeptNetwork
        from .masked_lm import MaskedLM

        network = denoiser.network
        if not isinstance(network, MaskedLM):
            raise ValueError(f"a cache is for models of the Transformers library; this is a {type(network).__name__}")
        if denoiser.one_by_one:
            raise ValueError("a cache evaluates a batch together: it does not go with batch_invariant")
        if cache == "none":
            raise ValueError("without a cache, take the model itself")
        check_cache(cache, refresh, network.block_causal)
        self.vocab_size, self.mask_id, self.device = denoiser.vocab_size, denoiser.mask_id, denoiser.device
        self.max_length: int | None = getattr(denoiser, "max_length", None)
        self.network, self.cache, self.refresh, self.most = network, cache, refresh, rows
        self.kept, self.denoiser = KeptNetwork(network, 0, 0), denoiser
        self.row_of: dict[int, int] = {}  # the row of each slot, the least recently used slot first
        # For prefix and dual: the block in which each row last computed all positions, and the evaluations since then.
        self.opened: list[int | None] = []
        self.age: list[int] = []
        # For block-causal: the tokens that the cached keys and values were computed from, and how many are valid.
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        self.known = torch.zeros(0, dtype=torch.int64, device=self.device)
        # For block-causal with shifted outputs: the last output of the block before the open one, and its position.
        self.edge = torch.zeros(0, 0, device=self.device)
        self.edge_at = torch.full((0,), -1, device=self.device)

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        slots = query.sequence.tolist()
        if len(set(slots)) < len(slots) or len(slots) > self.most:
            raise ValueError(
                f"this cache holds one state of each of at most {self.most} sequences, but the query is for sequences"
                f" {slots}"
            )
        kept = self._rows(slots, query.x.shape[1])
        query = self._padded(query)
        with torch.no_grad():
            tokens, seen = self.network.shown(query.x, query.where, query.valid)
            row, column = self.network.sources(query.where)
            if self.cache == "block-causal":
                return self._logits(self._exact(query, kept, tokens, seen, row, column))
            compute, fresh = self._open(query, kept.tolist())
            vectors = None
            for whole in (True, False):
                rows = (fresh == whole).nonzero().squeeze(-1)
                if not len(rows):
                    continue
                mine = fresh[row] == whole
                number = torch.empty_like(query.sequence).index_copy(
                    0, rows, torch.arange(len(rows), device=rows.device)
                )
                found = self.kept.vectors(
                    tokens[rows],
                    seen[rows],
                    kept[rows],
                    number[row[mine]],
                    column[mine],
                    None if whole else compute[rows],
                )
                vectors = found.new_empty(len(row), found.shape[1]) if vectors is None else vectors
                vectors[mine] = found
            assert vectors is not None
            return self._logits(vectors)

    def _logits(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocab"]:
        """Returns the logits for hidden states of the network's body, as the model itself would give them."""
        return self.denoiser.named(self.kept.logits(vectors))

    def forget(self, slots: Iterable[int]) -> None:
        """Frees the rows of sequences that have left; slots that are not cached are ignored."""
        for slot in slots:
            row = self.row_of.pop(slot, None)
            if row is not None:
                self.opened[row] = None
                self.known[row] = 0

    def clear(self) -> None:
        """Frees everything that is kept, and its memory; all sequences are computed anew."""
        from .kept import KeptNetwork

        self.kept = KeptNetwork(self.network, 0, 0)
        self.row_of, self.opened, self.age = {}, [], []
        self.tokens, self.known = self.tokens.new_zeros(0, 0), self.known.new_zeros(0)
        self.edge, self.edge_at = self.edge.new_zeros(0, 0), self.edge_at.new_zeros(0)

    @property
    def position_bytes(self) -> int:
        """Bytes that the keys and values of one position take."""
        config = self.network.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * self.network.model.dtype.itemsize

    def _rows(self, slots: Sequence[int], length: int) -> Int[Tensor, " rows"]:
        """Returns the row of the cache for each slot, and enlarges the cache for new slots and greater lengths."""
        new = [slot for slot in slots if slot not in self.row_of]
        if len(self.row_of) + len(new) > self.most:
            old = [slot for slot in self.row_of if slot not in set(slots)]
            self.forget(old[: len(self.row_of) + len(new) - self.most])
        free = iter(sorted(set(range(self.most)) - set(self.row_of.values())))
        for slot in new:
            self.row_of[slot] = next(free)
        for slot in slots:
            self.row_of[slot] = self.row_of.pop(slot)  # moved to the end: the most recently used
        size = max(len(self.opened), 1 + max(self.row_of.values()))
        width = max(length, self.tokens.shape[1])
        if size > len(self.opened) or width > self.tokens.shape[1]:
            more = size - len(self.opened)
            self.kept.resize(size, width)
            self.opened += [None] * more
            self.age += [0] * more
            self.tokens = torch.nn.functional.pad(self.tokens, (0, width - self.tokens.shape[1], 0, more))
            self.known = torch.nn.functional.pad(self.known, (0, more))
            self.edge = torch.cat([self.edge, self.edge.new_zeros(more, self.edge.shape[1])])  # of width 0 at first
            self.edge_at = torch.nn.functional.pad(self.edge_at, (0, more), value=-1)
        return torch.tensor([self.row_of[slot] for slot in slots], device=self.device)

    def _padded(self, query: Query) -> Query:
        """Returns the query, padded to the length of the cache, with blocks."""
        more = self.tokens.shape[1] - query.x.shape[1]
        block = torch.zeros_like(query.x) if query.block is None else query.block
        if not more:
            return replace(query, block=block)
        pad = torch.nn.functional.pad
        x, where = pad(query.x, (0, more), value=self.mask_id), pad(query.where, (0, more))
        return replace(
            query, x=x, where=where, valid=pad(query.valid, (0, more)), index=None, block=pad(block, (0, more))
        )

    def _open(self, query: Query, kept: list[int]) -> tuple[Bool[Tensor, "rows length"], Bool[Tensor, " rows"]]:
        """Returns which positions each row computes when it reads the cache, and which rows compute all positions."""
        block = query.block
        assert block is not None
        number = block.gather(1, query.where.to(torch.int8).argmax(-1, keepdim=True))
        fresh = []
        for one, opened in zip(kept, number.squeeze(-1).tolist(), strict=True):
            again = self.refresh is not None and self.age[one] >= self.refresh
            fresh.append(self.opened[one] != opened or again)
            self.opened[one], self.age[one] = opened, 1 if fresh[-1] else self.age[one] + 1
        compute = query.valid & (block >= number if self.cache == "prefix" else block == number)
        if self.network.shift:
            compute = compute | torch.nn.functional.pad(compute[:, 1:], (0, 1))
        return compute, torch.tensor(fresh, device=query.x.device)

    def _exact(
        self, query: Query, kept: Tensor, tokens: Tensor, seen: Tensor, row: Tensor, column: Tensor
    ) -> Float[Tensor, "asked width"]:
        """Returns the requested hidden states, with the cache `block-causal`.

        Blocks are computed from the one with the first changed token to the last one with a requested position. Where
        output `i - 1` predicts position `i`, a block's first token is predicted by the last output of the block before.
        That output is cached too; otherwise two blocks would be computed for as long as that token is masked.
        """
        size, length = self.network.block_causal, tokens.shape[1]
        assert size is not None
        position = torch.arange(length, device=tokens.device)
        same = (tokens == self.tokens[kept]) & (position < self.known[kept].unsqueeze(-1))
        unchanged = same.cumprod(-1).sum(-1)
        asked = torch.zeros_like(query.where).index_put_((row, column), torch.tensor(True, device=tokens.device))
        first = torch.where(asked, position, length).amin(-1)
        last = torch.where(asked, position, 0).amax(-1)
        held = (self.edge_at[kept] == first) & (unchanged > first)
        start = torch.minimum(unchanged, first + held.long()).div(size, rounding_mode="floor") * size
        end = torch.maximum(last, start).div(size, rounding_mode="floor") * size + size
        end = torch.minimum(end, query.valid.sum(-1))
        self.tokens[kept], self.known[kept] = tokens, end
        compute = (position >= start.unsqueeze(-1)) & (position < end.unsqueeze(-1))
        from_edge = held[row] & (column == first[row])
        vectors = self.kept.vectors(tokens, seen, kept, row, torch.where(from_edge, start[row], column), compute)
        if self.network.shift:
            if self.edge.shape[1] != vectors.shape[1]:
                self.edge = vectors.new_zeros(len(self.edge), vectors.shape[1])
            vectors[from_edge] = self.edge[kept[row[from_edge]]]
            self._keep_edge(kept, row, column, vectors, start, first)
        return vectors

    def _keep_edge(
        self, kept: Tensor, row: Tensor, column: Tensor, vectors: Tensor, start: Tensor, first: Tensor
    ) -> None:
        """Caches the last output of the block before the open one, where it was requested."""
        size = self.network.block_causal
        assert size is not None
        self.edge_at[kept] = torch.where(start <= self.edge_at[kept], -1, self.edge_at[kept])
        new = (column == first[row]) & (column % size == size - 1)
        self.edge[kept[row[new]]] = vectors[new]
        self.edge_at[kept[row[new]]] = column[new]
