"""Computes some positions of a batch with a Llama or Qwen, given cached keys and values of the other positions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .hf import check_attention
from .masked_lm import MaskedLM


class _KeysValues(Cache):
    """A key/value cache of every position, in every layer, from the evaluation that last computed it.

    The tensors of a layer have shape `[batch, heads, length + 1, width]`; the last column receives the results of
    positions that only pad a batch. `row` and `column` say where an evaluation writes. It attends to the keys that it
    has just computed (`whole`), or else to the first `reach` columns of its rows. These are a view of the cache if the
    rows are a slice (`some`), and a copy of the rows `row` if not.
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
        """Caches the keys and values just computed, and returns those to attend to, as the class describes."""
        computed = (key_states, value_states)
        if layer_idx == len(self.kept):
            # Zeros, because masked values are still multiplied by their weight of 0, and 0 times NaN would be NaN.
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
        """Returns 0: no cached tokens come before those that are given."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Returns 0: no cached tokens come before those that are given."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns how many positions are attended to when no attention mask is given, and the first of them."""
        return query_length, 0


def keys_change(network: MaskedLM) -> bool:
    """Returns whether the keys of a network depend on the length of the sequence, as some rotary embeddings do."""
    rope = getattr(network.model.config, "rope_parameters", None) or {}
    return rope.get("rope_type") in ("dynamic", "longrope")


class KeptNetwork:
    """A network with a key/value cache, which can compute some positions only.

    Args:
        network: A Llama or Qwen with bidirectional or block-causal attention.
        batch: Number of sequences.
        length: The length of the longest sequence.

    Raises:
        ValueError: If the network does not support a cache, or its keys depend on the length of the sequence.
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
        """Enlarges the cache to more sequences or longer ones, and keeps its content."""
        store = self.kept
        more = batch - store.batch, length - store.length
        for layer, pair in enumerate(store.kept):
            keys, values = (
                # The spare column stays the last one: new columns come before it.
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
        """Returns the final hidden states at the requested positions.

        Args:
            tokens: The tokens as the model is given them.
            seen: The attention mask: False at positions that are not attended to.
            sequence: The row of the cache for each row of the batch; no row occurs twice.
            row: Row of each requested position.
            column: Column of each requested position; it must be among the computed ones.
            compute: The positions to compute, at least one in each row. Those of the others come from the cache; where
                it has none they are zero, and `seen` or a block-causal mask must hide them. Default: all positions are
                computed, and attend only to each other.
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
        """Returns how many positions, from the first, the computed positions may attend to."""
        length, size = compute.shape[1], self.network.block_causal
        if size is None:
            return length
        last = int(compute.any(0).nonzero()[-1])
        return min(length, (last // size + 1) * size)

    def logits(self, vectors: Float[Tensor, "asked width"]) -> Float[Tensor, "asked vocab"]:
        """Returns the logits for hidden states of the network's body."""
        head = self.network.model.get_output_embeddings()
        assert head is not None
        return self.network.counted(head(vectors.unsqueeze(0))[0])


def _as_slice(rows: list[int]) -> slice | None:
    """Returns consecutive rows as a slice, and `None` for other rows."""
    return slice(rows[0], rows[0] + len(rows)) if rows == list(range(rows[0], rows[0] + len(rows))) else None
