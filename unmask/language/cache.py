"""Keys and values kept between evaluations: exactly where attention is block-causal, approximately elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import NetworkDenoiser, Query

if TYPE_CHECKING:
    from ..rules.rule import Rule

CACHES = ("none", "prefix", "dual", "block-causal")
"""What is kept: nothing; what comes before the open block; what comes before and after it; what cannot change."""


def check_cache(
    cache: str,
    refresh: int | None,
    block_causal: int | None,
    *,
    block_length: int | None = None,
    rule: Rule | None = None,
    guidance: float | None = None,
) -> None:
    """Refuses settings of a cache that do not go together.

    Args:
        cache: One of `CACHES`.
        refresh: Evaluations of a block from one that computes everything to the next.
        block_causal: Block length of the model's attention, if it is block-causal.
        block_length: Tokens per block of an answer.
        rule: What to unmask when; default: not looked at, nor is the block length.
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
            f"cache {cache!r} does not go with this model: its attention is block-causal, for which"
            " cache='block-causal' is exact"
            if block_causal is not None
            else "cache 'block-causal' is for models whose attention is block-causal (block_causal=... when they are"
            " loaded); this one looks at all positions, for which there are 'prefix' and 'dual'"
        )
    if rule is None:
        return
    if cache != "block-causal" and block_length is None:
        raise ValueError(f"cache {cache!r} keeps what is outside the open block: give block_length")
    if guidance is not None:
        raise ValueError(f"cache {cache!r} does not go with guidance, which evaluates two states of a sequence")
    if rule.speculates or rule.tests:
        raise ValueError(f"cache {cache!r} does not go with {rule}, which evaluates several states of a sequence")


class Cached:
    """A language model that keeps keys and values of one batch from evaluation to evaluation.

    `prefix` and `dual` compute everything when a block opens, and again after every `refresh` evaluations of it. In
    between, `prefix` computes from the block on, with the keys and values of what comes before as they were, and `dual`
    computes the block only. That is an approximation: what is kept does not know of the tokens unmasked since.

    `block-causal` computes anew what can have changed, by comparing tokens, and is exact for any blocks and any rule.

    Sequences are told apart by `Query.sequence`, and decide on their own when to compute everything: batch mates change
    nothing but rounding. An object serves one batch, whose states must be evaluated one after the other.

    Args:
        denoiser: The model: a LLaDA, a Dream, or an adapted Llama or Qwen.
        cache: `"prefix"`, `"dual"` or `"block-causal"`.
        block: The block number of every position, as in `State.block`.
        refresh: Evaluations from one that computes everything to the next, at least 1 (which is no cache); default:
            only when a block opens.

    Raises:
        ValueError: If the model cannot keep keys and values, or the settings do not go together.

    References:
        Wu et al. (2025), arXiv:2505.22618, Fast-dLLM: prefix cache and dual cache. Where output `i - 1` predicts
        position `i` (Dream), the position before the block is computed with it.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        cache: str,
        block: Int[Tensor, "batch length"],
        refresh: int | None = None,
    ) -> None:
        from ..adapters.kept import KeptNetwork
        from ..adapters.masked_lm import MaskedLM

        network = denoiser.network
        if not isinstance(network, MaskedLM):
            raise ValueError(f"a cache is for models of the Transformers library; this is a {type(network).__name__}")
        if cache == "none":
            raise ValueError("without a cache, take the model itself")
        check_cache(cache, refresh, network.block_causal)
        self.vocab_size, self.mask_id, self.device = denoiser.vocab_size, denoiser.mask_id, denoiser.device
        self.max_length: int | None = getattr(denoiser, "max_length", None)
        self.network, self.cache, self.block, self.refresh = network, cache, block, refresh
        self.kept = KeptNetwork(network, *block.shape)
        # Of prefix and dual: the block in which each sequence last computed everything, and evaluations since.
        self.opened: list[int | None] = [None] * len(block)
        self.age = [0] * len(block)
        # Of block-causal: what the keys and values were computed of, and how many of them, from the first, there are.
        self.tokens, self.known = torch.zeros_like(block), torch.zeros_like(block[:, 0])

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        if query.x.shape[1] != self.block.shape[1]:
            raise ValueError(f"this cache is of sequences of {self.block.shape[1]} tokens, got {query.x.shape[1]}")
        sequences = query.sequence.tolist()
        if len(set(sequences)) < len(sequences) or not all(0 <= one < len(self.block) for one in sequences):
            raise ValueError(
                f"this cache is of one state of each of {len(self.block)} sequences; asked for those of {sequences}"
            )
        with torch.no_grad():
            tokens, seen = self.network.shown(query.x, query.where, query.valid)
            row, column = self.network.sources(query.where)
            if self.cache == "block-causal":
                compute = self._changed(query, tokens, row, column)
                return self.kept.logits(self.kept.vectors(tokens, seen, query.sequence, row, column, compute))
            compute, fresh = self._open(query, sequences)
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
                    query.sequence[rows],
                    number[row[mine]],
                    column[mine],
                    None if whole else compute[rows],
                )
                vectors = found.new_empty(len(row), found.shape[1]) if vectors is None else vectors
                vectors[mine] = found
            assert vectors is not None
            return self.kept.logits(vectors)

    def _open(self, query: Query, sequences: list[int]) -> tuple[Bool[Tensor, "rows length"], Bool[Tensor, " rows"]]:
        """What each row computes if it does not compute everything, and which rows do."""
        block = self.block[query.sequence]
        number = block.gather(1, query.where.to(torch.int8).argmax(-1, keepdim=True))
        fresh = []
        for one, opened in zip(sequences, number.squeeze(-1).tolist(), strict=True):
            again = self.refresh is not None and self.age[one] >= self.refresh
            fresh.append(self.opened[one] != opened or again)
            self.opened[one], self.age[one] = opened, 1 if fresh[-1] else self.age[one] + 1
        compute = query.valid & (block >= number if self.cache == "prefix" else block == number)
        if self.network.shift:
            compute = compute | torch.nn.functional.pad(compute[:, 1:], (0, 1))
        return compute, torch.tensor(fresh, device=query.x.device)

    def _changed(self, query: Query, tokens: Tensor, row: Tensor, column: Tensor) -> Bool[Tensor, "rows length"]:
        """From the block of the first token that is not as it was, or is asked for, to that of the last asked for."""
        size, length = self.network.block_causal, tokens.shape[1]
        assert size is not None
        position = torch.arange(length, device=tokens.device)
        same = (tokens == self.tokens[query.sequence]) & (position < self.known[query.sequence].unsqueeze(-1))
        asked = torch.zeros_like(query.where).index_put_((row, column), torch.tensor(True, device=tokens.device))
        first = torch.where(asked, position, length).amin(-1)
        last = torch.where(asked, position, 0).amax(-1)
        start = torch.minimum(same.cumprod(-1).sum(-1), first).div(size, rounding_mode="floor") * size
        end = torch.minimum((last.div(size, rounding_mode="floor") + 1) * size, query.valid.sum(-1))
        self.tokens[query.sequence], self.known[query.sequence] = tokens, end
        return (position >= start.unsqueeze(-1)) & (position < end.unsqueeze(-1))
