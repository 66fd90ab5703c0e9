"""A folder of the user's own texts with gaps, whose completions the model itself judges, as no answers are known."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, device_of
from ..errors import DataError
from ..likelihood.nelbo import nelbo
from ._common import MASK_SIGN, check_split
from .task import Prompts
from .text import TextTask, Windows, read_text

_GAP = re.compile(rf"\[MASK:(\d+)\]|{MASK_SIGN}")


class PromptFolder:
    """The prompts in a folder: its files `*.txt`, in the order of their names.

    In a file `□` stands for a mask and `[MASK:12]` for twelve masks; a line end after the last line is dropped. Each
    prompt must have as many tokens as the model takes.

    The score is minus the NELBO under the model, in nats per filled-in token: it estimates how probable the completion
    is given the rest, whatever the order in which it was filled in. It cannot distinguish a dull completion from a good
    one, but it shows what a sampler loses compared with one token at a time.

    Args:
        folder: The folder.
        denoiser: The model.
        text: The task that the model was trained on, for its vocabulary.
        encoding: The encoding of the files; default: the one that they declare, or else UTF-8.

    Raises:
        DataError: If the folder has no such file, or one cannot be read, has another number of tokens, no mask, or
            characters outside the vocabulary.
    """

    name = "prompts"
    quality = "minus the NELBO of what is filled in, nats per token"

    def __init__(self, folder: Path, denoiser: Denoiser, text: TextTask, encoding: str | None = None) -> None:
        self.denoiser, self.text, self.encoding = denoiser, text, encoding
        self.vocab_size, self.mask_id, self.length = text.vocab_size, text.mask_id, text.length
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        if not files:
            raise DataError(f"{folder} has no prompts: expected a folder of files *.txt with {MASK_SIGN} where masked")
        self.rows = torch.stack([self._read(file) for file in files])

    def _read(self, file: Path) -> Int[Tensor, " length"]:
        written, tokens, begin = read_text(file, self.encoding).removesuffix("\n"), [], 0
        for gap in _GAP.finditer(written):
            tokens += self.text.tokens_of(written[begin : gap.start()], str(file))
            size = gap.group(1) or "1"
            if len(size) > 9 or int(size) > self.length:
                raise DataError(f"{file} has a gap of {size:.20} tokens; the model takes {self.length} in all")
            tokens += [self.mask_id] * int(size)
            begin = gap.end()
        tokens += self.text.tokens_of(written[begin:], str(file))
        if self.mask_id not in tokens:
            raise DataError(f"{file} has no mask: write {MASK_SIGN} for one, [MASK:12] for twelve masks")
        if len(tokens) != self.length:
            raise DataError(f"{file} has {len(tokens)} tokens; the model takes {self.length}")
        return torch.tensor(tokens)

    def examples(self, split: str) -> Windows:
        """Returns the examples of the text task that the model was trained on."""
        return self.text.examples(split)

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` prompts, the same in every split; their answers are the prompts themselves."""
        check_split(split)
        rows = self.rows[: whole("limit", limit, 1)]
        return Prompts(rows, rows)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns minus the NELBO of each completion, in nats per filled-in token.

        The random masks of the estimate are the same in every call, so that samplers can be compared.
        """
        device = device_of(self.denoiser)
        filled = (prompts.tokens == self.mask_id).to(device)
        return -nelbo(self.denoiser, tokens.to(device), maskable=filled, seed=0).per_token.cpu()

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the text, with `□` for a mask."""
        return self.text.show(tokens)
