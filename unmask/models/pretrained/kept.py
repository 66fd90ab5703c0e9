"""Runs some positions of a batch through a Llama or Qwen, the keys and values of the others kept from earlier runs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .hf import check_attention
from .masked_lm import MaskedLM


class _KeysValues(Cache):
    """Keys and values of every position, in every layer, from the run that last computed them.

    Each layer's are `[batch, heads, length + 1, width]`; the last column takes what is computed to fill up a batch.
    `row` and `column` say where a run writes; it looks at what it writes (`whole`), or at the first `reach` columns of
    the rows `some`, a view of what is kept, or if these are no slice, at a copy of `row`.
    """

    def __init__(self, batch: int, length: int) -> None:
        super().__init__(layers=[])
        self.batch, self.length = batch, length
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.row = self.column = torch.empty(0)
        self.whole, self.reach = True, length
        self.some: slice | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keeps what a run computed, and returns what it looks at: that, or with it what was kept."""
        computed = (key_states, value_states)
        if layer_idx == len(self.kept):
            # Zeros, as what attention does not look at is still multiplied, by 0.
            empty = [new.new_zeros(self.batch, new.shape[1], self.length + 1, new.shape[3]) for new in computed]
            self.kept.append((empty[0], empty[1]))
        row, column = self.row.to(key_states.device), self.column.to(key_states.device)
        for store, new in zip(self.kept[layer_idx], computed, strict=True):
            store[row.unsqueeze(-1), :, column] = new.transpose(1, 2)
        if self.whole:
            return computed
        keys, values = (store[:, :, : self.reach] for store in self.kept[layer_idx])
        some = row if self.some is None else self.some
        return keys[some], values[some]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing comes before the tokens that are given."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """No offset: nothing comes before the tokens that are given."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns how many positions are looked at where no mask of attention is given, and the first."""
        return query_length, 0


def keys_change(network: MaskedLM) -> bool:
    """Whether the keys of a network change with the length of the sequence, as its rotary positions do."""
    rope = getattr(network.model.config, "rope_parameters", None) or {}
    return rope.get("rope_type") in ("dynamic", "longrope")


class KeptNetwork:
    """A network that can be asked to compute some positions only.

    Args:
        network: A Llama or Qwen that is run in both directions, or block-causally.
        batch: Number of sequences.
        length: The length of the longest.

    Raises:
        ValueError: If the network cannot keep keys and values, or scales its positions by the length of the sequence.
    """

    def __init__(self, network: MaskedLM, batch: int, length: int) -> None:
        check_attention(network.model, "a cache")
        if keys_change(network):
            kind: str = network.model.config.rope_parameters["rope_type"]  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"a cache does not go with rope_type {kind!r}: keys change with the length of the sequence"
            )
        self.network, self.kept = network, _KeysValues(batch, length)

    def resize(self, batch: int, length: int) -> None:
        """Makes room for more sequences, or longer ones; what is kept stays."""
        store = self.kept
        more = batch - store.batch, length - store.length
        for layer, pair in enumerate(store.kept):
            keys, values = (
                # The spare column is the last one: what is new comes before it.
                torch.nn.functional.pad(old[:, :, :-1], (0, 0, 0, more[1] + 1, 0, 0, 0, more[0]))
                for old in pair
            )
            store.kept[layer] = keys, values
        store.batch, store.length = batch, length

    def vectors(
        self,
        tokens: Int[Tensor, "rows length"],
        seen: Bool[Tensor, "rows length"],
        sequence: Int[Tensor, " rows"],
        row: Int[Tensor, " asked"],
        column: Int[Tensor, " asked"],
        compute: Bool[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "asked width"]:
        """Returns the outputs of the network's body at the positions asked for.

        Args:
            tokens: What the model is shown.
            seen: False where it is not to look.
            sequence: Which of the sequences each row is; none twice.
            row: Row of each position asked for.
            column: Its column, to be computed.
            compute: The positions to compute, at least one in each row; the keys and values of the others are those
                that were last computed, and where there are none, zero: `seen`, or a block-causal mask, must hide them.
                Default: all, with no other keys and values than their own.
        """
        kept, body = self.kept, self.network.model.base_model
        kept.row, kept.whole, kept.some = sequence, compute is None, _as_slice(sequence.tolist())
        if compute is None:
            kept.column = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            look = seen.long() if self.network.block_causal is None else self.network.looks(seen)
            state = body(input_ids=tokens, attention_mask=look, past_key_values=kept).last_hidden_state
            return state[row, column]
        count = compute.sum(-1, keepdim=True)
        position = (~compute).to(torch.int8).argsort(dim=-1, stable=True)[:, : int(count.max())]
        fills = torch.arange(position.shape[1], device=tokens.device) >= count
        kept.column, kept.reach = position.masked_fill(fills, kept.length), self._reach(compute)
        look = self.network.looks(seen[:, : kept.reach], position)
        state = body(
            input_ids=tokens.gather(1, position), attention_mask=look, position_ids=position, past_key_values=kept
        ).last_hidden_state
        return state[row, (compute.cumsum(-1) - 1)[row, column]]

    def _reach(self, compute: Bool[Tensor, "rows length"]) -> int:
        """How many positions, from the first, those that are computed look at."""
        length, size = compute.shape[1], self.network.block_causal
        if size is None:
            return length
        last = int(compute.any(0).nonzero()[-1])
        return min(length, (last // size + 1) * size)

    def logits(self, vectors: Float[Tensor, "asked width"]) -> Float[Tensor, "asked vocab"]:
        """Returns the logits of what the body put out."""
        head = self.network.model.get_output_embeddings()
        assert head is not None
        return self.network.counted(head(vectors.unsqueeze(0))[0])


def _as_slice(rows: list[int]) -> slice | None:
    """Rows that follow one another as a slice, `None` for others."""
    return slice(rows[0], rows[0] + len(rows)) if rows == list(range(rows[0], rows[0] + len(rows))) else None
