"""How many tokens a model of the Transformers library takes: the one place where this is decided."""

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
"""Tokens of the sequence that shows which rows of its tables a model looks up."""

_found: WeakKeyDictionary[PreTrainedModel, tuple[int | None, int | None]] = WeakKeyDictionary()


def longest(model: PreTrainedModel) -> int | None:
    """Returns the most tokens a model takes, or `None` if nothing limits them.

    That is what its configuration says (`max_position_embeddings`), or less if a table of positions has fewer rows that
    can be used: RoBERTa and its like number positions from the padding token's id on, and never use the rows before.
    Which table that is, and where it starts, is seen in an evaluation of a few tokens, once per model.
    """
    limit = declared(model)
    known = _found.get(model)
    if known is None or known[0] != limit:
        found = _usable_rows(model, _TRIED if limit is None else min(_TRIED, limit))
        found += [] if limit is None else [limit]
        known = _found[model] = (limit, min(found) if found else None)
    return known[1]


def declared(model: PreTrainedModel) -> int | None:
    """Returns how many positions the configuration of a model says it has, or `None` if it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit >= 1 else None


def unusable(model: PreTrainedModel) -> int:
    """Returns how many of the positions that its configuration says it has a model cannot use."""
    said, limit = declared(model), longest(model)
    return 0 if said is None or limit is None else said - limit


def ordinary_tokens(model: PreTrainedModel) -> list[int]:
    """Returns the token ids that the configuration of a model gives no special meaning, at least one."""
    configs: list[Any] = [model.config, model.config.get_text_config()]
    special: set[Any] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_index")):
                special |= set(value) if isinstance(value, list) else {value}
    tokens = range(configs[1].vocab_size)
    return [token for token in tokens if token not in special] or list(tokens)


def _usable_rows(model: PreTrainedModel, length: int) -> list[int]:
    """Returns, of each table of positions, the number of its rows from that of the first position on."""
    device, tables = next(model.parameters()).device, _tables(model)
    if device.type == "meta" or length < 2 or not tables:
        return []
    # One token throughout: what is looked up in a row of consecutive numbers are its positions.
    x = torch.full((1, length), ordinary_tokens(model)[-1], device=device)
    seen = _Lookups(tables, length)
    try:
        with quiet(), at_rest(model), seen:
            model(input_ids=x, attention_mask=torch.ones_like(x))
    except Exception:  # too long; or it cannot be evaluated, and says so when it is asked for something
        return seen.rows or _usable_rows(model, length - 1)
    return seen.rows


def _tables(model: PreTrainedModel) -> set[int]:
    """Returns the addresses of all matrices that are neither factors of a product nor the table of tokens."""
    embedding: Any = model.get_input_embeddings()
    return {
        tensor.data_ptr()
        for module in model.modules()
        if module is not embedding and not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.ndim == 2 and tensor.is_floating_point()
    }


class _Lookups(TorchDispatchMode):
    """Watches for rows of a table that are looked up in consecutive order, one a position.

    Args:
        tables: Addresses of the tables to watch.
        length: Number of positions; what a model adds behind them of itself is not looked at.
    """

    def __init__(self, tables: set[int], length: int) -> None:
        super().__init__()
        self.tables, self.length, self.rows = tables, length, list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and takes note of it if it is such a lookup."""
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
