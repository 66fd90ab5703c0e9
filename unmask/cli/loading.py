"""How the commands for language models load one, and the options that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from ..folders import EMBEDDED
from ..language import LanguageModel
from ..models.registry import load
from . import common

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loading:
    """How a language model is loaded."""

    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu"
    dtype: Annotated[str, typer.Option(help=f"Type of the weights: {', '.join(DTYPES)}.")] = "float32"
    shift: Annotated[
        bool | None, typer.Option(help="For an adapted Llama or Qwen: whether output i - 1 predicts position i.")
    ] = None
    block_causal: Annotated[
        int | None,
        typer.Option("--block-causal", help="Block length of the attention, if the model's files do not say it."),
    ] = None
    mask_id: Annotated[
        int | None, typer.Option("--mask-id", min=0, help="Id of the mask token, if the model's files do not name it.")
    ] = None
    smoothing: Annotated[
        float | None, typer.Option(help="Undo the label smoothing ε that the model was trained with, such as 0.1.")
    ] = None

    def identity(self) -> list[Any]:
        """Returns the options that change answers."""
        return [self.dtype, self.shift, self.block_causal, self.mask_id, self.smoothing]

    def options(self) -> dict[str, Any]:
        """Returns the options as arguments of `unmask.load`.

        Raises:
            ValueError: If there is no such type or device.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        return {
            "device": common.device_named(self.device),
            "dtype": DTYPES[self.dtype],
            "shift": self.shift,
            "block_causal": self.block_causal,
            "mask_id": self.mask_id,
            "smoothing": self.smoothing,
        }

    def model(self, name: str) -> LanguageModel:
        """Loads a language model.

        Raises:
            AdapterError: If it cannot be loaded.
            ValueError: If it has no tokenizer, or there is no such type or device.
        """
        if name in EMBEDDED:
            common.one_thread()
        loaded = load(name, **self.options())
        if not isinstance(loaded, LanguageModel):
            raise ValueError(f"the model {name!r} has no tokenizer, so it is not one for text; try chat")
        return loaded


ON_CPU = Loading()
"""How a model is loaded where nothing is given."""
