"""Human antibody chains: fill in masked residues, for the models `sapiens-vh` (heavy) and `sapiens-vl` (light).

The chains are joined from human germline segments, without mutations: heavy chains from V, D and J segments, light ones
(kappa and lambda) from V and J segments. The models were trained on similar sequences, so these chains serve to compare
samplers with each other, and say little about how good a model is.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from ..draws.streams import derive
from ..files.reading import decode
from ._common import HALVES, MASK_SIGN, Draws
from ._infilling import Infilling

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
VOCABULARY = ("<s>", "<pad>", "</s>", "<unk>", *RESIDUES, "<mask>")
"""The tokens of both models, in the order of their ids."""

COUNT = 1000
"""Number of chains that are made for a half; duplicates are then removed."""

LOCI = {"heavy": ("IGH",), "light": ("IGK", "IGL")}
_LONGEST = 144


@cache
def segments() -> dict[str, str]:
    """Returns the human germline segments by name: `IGHV1-2*02`, `IGKJ1*01`, `IGHD1-1*01/1` (reading frame 1), ..."""
    packed = resources.files("unmask").joinpath("data/antibodies/germline.txt.gz").read_bytes()
    lines = decode(packed, "the embedded germline segments").splitlines()
    return dict(line.split() for line in lines)


def chains(chain: str, half: str) -> list[str]:
    """Joins random segments to chains, each a function of (chain, half, index); a V gene belongs to one half only.

    Args:
        chain: `heavy` or `light`.
        half: `validation` or `test`.

    Returns:
        The different chains, as one-letter codes of residues.
    """
    known = segments()
    pools = {
        kind: [name for name in known if name.startswith(kind)]
        for kind in (f"{locus}{kind}" for locus in LOCI[chain] for kind in "VDJ")
    }
    first = [name for locus in LOCI[chain] for name in pools[f"{locus}V"] if _half(name) == half]
    joined = []
    for index in range(COUNT):
        draws = Draws(0, "antibody", chain, half, index)
        v = draws.pick(first)
        rest = [draws.pick(pools[v[:3] + kind]) for kind in ("DJ" if chain == "heavy" else "J")]
        joined.append("".join(known[name] for name in (v, *rest)))
    return list(dict.fromkeys(joined))


def _half(allele: str) -> str:
    return HALVES[derive(0, "antibody half", allele.partition("*")[0]) % 2]


class AntibodyTask(Infilling):
    """Antibody chains with masks (see the module), scored by the share of masked residues recovered.

    All alleles of a V gene are in the same half; D and J segments are in both halves.

    Args:
        chain: `heavy` or `light`.
        kind: `random` masks single residues; `spans` masks spans of `span` residues, by default about the length of a
            complementarity-determining region.
        share: The share of a chain that is masked.
        span: Residues per span.
        length: The maximum number of tokens of a chain, including its first and last special token; longer chains are
            left out.

    Raises:
        ValueError: If a setting is out of range.
        DataError: If all chains of a half are longer than `length`.
    """

    name = "antibodies"
    quality = "share of masked residues recovered"
    vocab_size = len(VOCABULARY)
    mask_id = VOCABULARY.index("<mask>")
    fill_id = VOCABULARY.index("<pad>")
    special_ids = tuple(range(4))

    def __init__(
        self,
        chain: Literal["heavy", "light"] = "heavy",
        kind: Literal["random", "spans"] = "random",
        *,
        share: float = 0.4,
        span: int = 10,
        length: int = _LONGEST,
    ) -> None:
        if chain not in LOCI:
            raise ValueError(f"unknown chain {chain!r}; choose one of {', '.join(LOCI)}")
        if kind not in ("random", "spans"):
            raise ValueError(f"unknown kind {kind!r}; choose one of random, spans")
        self.chain = chain
        ids = {token: number for number, token in enumerate(VOCABULARY)}
        rows: dict[str, list[list[int]]] = {}
        for half in HALVES:
            joined = chains(chain, half)
            rows[half] = [[ids["<s>"], *(ids[residue] for residue in one), ids["</s>"]] for one in joined]
        super().__init__(rows, kind, share, span, length)

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the residues, with `□` for a mask."""
        shown = [token for token in tokens.tolist() if token not in self.special_ids]
        return "".join(MASK_SIGN if token == self.mask_id else VOCABULARY[token] for token in shown)
