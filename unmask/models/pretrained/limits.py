"""Finds the maximum sequence length of a model of the Transformers library."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from .hf import quiet
from .undisturbed import at_rest

_TRIED = 5
"""Length of the test sequence, which shows from which rows of its position embeddings a model reads."""

_found: WeakKeyDictionary[PreTrainedModel, tuple[int | None, int | None]] = WeakKeyDictionary()


def longest(model: PreTrainedModel) -> int | None:
    """Returns the maximum number of tokens of a sequence, or `None` if nothing limits it.

    That is `max_position_embeddings` of the model's configuration, or less if a position embedding has fewer usable
    rows: RoBERTa and similar models number positions from the padding token's id on, and never use the rows before.
    Which tensor the position embedding is, and where it starts, is found by evaluating a few tokens, once per model.
    """
    limit = declared(model)
    known = _found.get(model)
    if known is None or known[0] != limit:
        found = _usable_rows(model, _TRIED if limit is None else min(_TRIED, limit))
        found += [] if limit is None else [limit]
        known = _found[model] = (limit, min(found) if found else None)
    return known[1]


def declared(model: PreTrainedModel) -> int | None:
    """Returns `max_position_embeddings` of a model's configuration, or `None` if it does not give a number >= 1."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit >= 1 else None


def unusable(model: PreTrainedModel) -> int:
    """Returns how many of the positions in its configuration a model cannot use; 0 if nothing limits them."""
    said, limit = declared(model), longest(model)
    return 0 if said is None or limit is None else said - limit


def ordinary_tokens(model: PreTrainedModel) -> list[int]:
    """Returns the token ids that a model's configuration does not name as special tokens; all ids if it names all."""
    configs: list[Any] = [model.config, model.config.get_text_config()]
    special: set[Any] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_index")):
                special |= set(value) if isinstance(value, list) else {value}
    tokens = range(configs[1].vocab_size)
    return [token for token in tokens if token not in special] or list(tokens)


def _usable_rows(model: PreTrainedModel, length: int) -> list[int]:
    """Returns, for each position embedding, the number of its rows from that of the first position on."""
    device, tables = next(model.parameters()).device, _tables(model)
    if device.type == "meta" or length < 2 or not tables:
        return []
    # One token throughout: so a lookup of consecutive rows can only be that of positions.
    x = torch.full((1, length), ordinary_tokens(model)[-1], device=device)
    seen = _Lookups(tables, length)
    try:
        with quiet(), at_rest(model), seen:
            model(input_ids=x, attention_mask=torch.ones_like(x))
    except Exception:  # too long; or the model cannot be evaluated at all, which its first use will report
        return seen.rows or _usable_rows(model, length - 1)
    return seen.rows


def _tables(model: PreTrainedModel) -> set[int]:
    """Returns the addresses of all matrices that may be position embeddings.

    The weights of linear layers and convolutions, and the token embedding, are left out.
    """
    embedding: Any = model.get_input_embeddings()
    return {
        tensor.data_ptr()
        for module in model.modules()
        if module is not embedding and not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.ndim == 2 and tensor.is_floating_point()
    }


class _Lookups(TorchDispatchMode):
    """Records lookups of consecutive rows of a matrix, one row for each position.

    Args:
        tables: Addresses of the matrices to watch.
        length: Number of positions; those that a model itself appends are ignored.

    Attributes:
        rows: For each such lookup, the number of rows of the matrix from the first one looked up on.
    """

    def __init__(self, tables: set[int], length: int) -> None:
        super().__init__()
        self.tables, self.length, self.rows = tables, length, list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and records it if it is such a lookup."""
        name = str(func)
        if name.startswith(("aten.embedding.", "aten.index_select.", "aten.index.Tensor")):
            index = args[2] if name.startswith("aten.index_select") else args[1]
            index = index[0] if isinstance(index, (list, tuple)) and len(index) == 1 else index
            self._note(args[0], index)
        return func(*args, **(kwargs or {}))

    def _note(self, table: Tensor, index: object) -> None:
        if table.ndim != 2 or not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
            return
        if index.ndim == 0 or index.shape[-1] < self.length or table.data_ptr() not in self.tables:
            return
        places = index.reshape(-1, index.shape[-1])[:, : self.length]
        consecutive = places[:1, :1] + torch.arange(self.length, device=index.device)
        if bool((places == consecutive).all()):
            self.rows.append(table.shape[0] - int(places[0, 0]))
