"""Chemical reactions in SMILES, `reactants>>products`: fill in masked atoms and bonds, or one whole side.

The tokens are those of RXNMapper's model, the embedded `rxnmapper`: atoms, bonds, brackets, ring closures. The data are
the examples of its authors. The model was probably trained on them, so they serve to compare samplers with each other,
and say nothing about how good the model is.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import derive
from ..errors import DataError
from ..files.reading import decode, read_text, split_lines
from ._common import HALVES, MASK_SIGN, Draws
from ._infilling import Infilling

SMILES = re.compile(
    r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)
"""Matches one token of a reaction, as the model's tokenizer splits it."""

ARROW = ">>"
_LONGEST = 164


@cache
def _vocabulary() -> tuple[str, ...]:
    file = resources.files("unmask").joinpath("data/models/rxnmapper/tokenizer.json")
    ids: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    return tuple(sorted(ids, key=ids.__getitem__))


def read_reactions(path: Path | None = None) -> list[str]:
    """Reads reactions, one per line; empty lines are skipped.

    Args:
        path: The file; default: the reactions that ship with the package.

    Raises:
        DataError: If the file cannot be read, or a line is not a reaction in the model's tokens. The message names the
            line.
    """
    if path is None:
        packed = resources.files("unmask").joinpath("data/reactions/reactions.txt.gz").read_bytes()
        text, name = decode(packed, "the embedded reactions"), "the embedded reactions"
    else:
        text, name = read_text(path, "the reactions"), str(path)
    known, found = set(_vocabulary()), []
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        tokens = SMILES.findall(line)
        strange = next((token for token in tokens if token not in known), None)
        if "".join(tokens) != line or strange is not None or tokens.count(ARROW) != 1:
            what = f"{strange!r} is not a token of the model" if strange else "expected SMILES as reactants>>products"
            raise DataError(f"{name}, line {number}: {what}: {line:.60}")
        found.append(line)
    return found


def well_formed(reaction: str) -> bool:
    """Returns whether a text is syntactically a reaction: one arrow, parentheses and rings closed in each molecule.

    Valences are not checked, nor whether the reaction could happen.
    """
    tokens = SMILES.findall(reaction)
    if "".join(tokens) != reaction or tokens.count(ARROW) != 1:
        return False
    molecules: list[list[str]] = [[]]
    for token in tokens:
        if token in (".", ARROW):
            molecules.append([])
        else:
            molecules[-1].append(token)
    return all(molecule and _closed(molecule) for molecule in molecules)


def _closed(molecule: list[str]) -> bool:
    depth, rings = 0, set()
    for token in molecule:
        depth += (token == "(") - (token == ")")
        if depth < 0:
            return False
        if token.isdigit() or token.startswith("%"):
            rings ^= {token}
    return depth == 0 and not rings


class ReactionTask(Infilling):
    """Reactions with masks (see the module), scored by the share of masked tokens recovered.

    A hash of a reaction determines its half.

    Args:
        kind: `random` masks single tokens, `spans` masks spans of `span` tokens, `product` masks everything after the
            arrow, and `reactants` everything before it.
        share: The share of a reaction that is masked by the first two kinds.
        span: Tokens per span.
        length: The maximum number of tokens of a reaction, including its first and last special token; longer reactions
            are left out.
        data: A file of reactions, one per line; default: those that ship with the package.

    Raises:
        ValueError: If a setting is out of range.
        DataError: If the data cannot be read, or all reactions of a half are longer than `length`.
    """

    name = "reactions"

    def __init__(
        self,
        kind: Literal["random", "spans", "product", "reactants"] = "random",
        *,
        share: float = 0.4,
        span: int = 8,
        length: int = _LONGEST,
        data: str | None = None,
    ) -> None:
        if kind not in ("random", "spans", "product", "reactants"):
            raise ValueError(f"unknown kind {kind!r}; choose one of random, spans, product, reactants")
        ids = {token: number for number, token in enumerate(_vocabulary())}
        self.fill_id, self.mask_id, self.arrow_id = ids["[PAD]"], ids["[MASK]"], ids[ARROW]
        self.special_ids = tuple(range(self.mask_id))  # [PAD], [unused1], ..., [UNK], [CLS], [SEP] come before it
        self.vocab_size = len(ids)
        rows: dict[str, list[list[int]]] = {split: [] for split in HALVES}
        reactions = read_reactions(None if data is None else Path(data))
        for reaction in sorted(reactions, key=lambda text: derive(0, "reaction order", text)):
            half = HALVES[derive(0, "reaction half", reaction) % 2]
            rows[half].append([ids["[CLS]"], *(ids[token] for token in SMILES.findall(reaction)), ids["[SEP]"]])
        super().__init__(rows, kind, share, span, length)

    def chosen(self, tokens: Int[Tensor, " tokens"], draws: Draws) -> Bool[Tensor, " tokens"]:
        """Returns which tokens of a reaction are masked; see `Infilling.chosen`."""
        if self.kind in ("random", "spans"):
            return super().chosen(tokens, draws)
        place, arrow = torch.arange(len(tokens)), int((tokens == self.arrow_id).nonzero())
        return place > arrow if self.kind == "product" else place < arrow

    def measures(self, tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        """Returns `well_formed`: 1 for samples that are syntactically reactions (see the function), 0 for others."""
        return {"well_formed": torch.tensor([well_formed(self.show(row)) for row in tokens], dtype=torch.float64)}

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the reaction, with `□` for a mask."""
        shown = [token for token in tokens.tolist() if token not in self.special_ids]
        return "".join(MASK_SIGN if token == self.mask_id else _vocabulary()[token] for token in shown)
