"""The dependence profile of a model: mutual information between masked positions, by where they lie.

For a context, a masked position `j` and a masked position `i`, draw `x_j ~ p_j` and evaluate again: the expectation of
`KL(p_i(· | x_j) ‖ p_i)` over `x_j` *is* `I(x_i; x_j | context)` under the model. A profile is the mean of such values
over contexts, by what a rule can see: the *class* of the pair (a distance on the line, or a relation such as "in one
row"), the *masked share* of the sequence, on the line whether the pair is *screened* (a token between them is known),
and the *level* of the smaller of its two entropies, which bounds the information.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from ..errors import AdapterError
from ..folders import model_folder

FORMAT = "unmask-profile/1"


@lru_cache
def _distance_classes(starts: tuple[int, ...]) -> Int[Tensor, " distances"]:
    """The class of every distance up to the least of the last class; 0 counts as 1."""
    return (torch.searchsorted(torch.tensor(starts), torch.arange(starts[-1] + 1), right=True) - 1).clamp(min=0)


@dataclass(frozen=True)
class Line:
    """Pairs by distance, for sequences of any length; every longer distance belongs to the last class.

    Attributes:
        starts: The least distance of each class, increasing from 1.
    """

    starts: tuple[int, ...]
    screens: int = field(default=2, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] != 1 or list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"the least distances of the classes increase from 1, got {self.starts}")

    @staticmethod
    def of(length: int, exact: int = 16, growth: float = 1.2) -> Line:
        """Every distance up to `exact` is a class of its own; beyond, classes widen by a factor `growth`."""
        starts = [1]
        while starts[-1] < length - 1:
            starts.append(max(starts[-1] + 1, int(starts[-1] * growth) if starts[-1] >= exact else 0))
        return Line(tuple(start for start in starts if start < max(2, length)))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.starts)

    def pairs(self, one: Int[Tensor, "*#shape"], other: Int[Tensor, "*#shape"]) -> Int[Tensor, "*shape"]:
        """Returns the class of each pair of positions."""
        distance = (one - other).abs().clamp(max=self.starts[-1])
        return _distance_classes(self.starts).to(distance.device)[distance]

    def check(self, length: int) -> None:
        """Accepts sequences of any length."""

    def label(self, number: int) -> str:
        """The distances of a class."""
        first = self.starts[number]
        last = self.starts[number + 1] - 1 if number + 1 < self.classes else None
        return f"{first}" if last == first else f"{first}–{last}" if last else f"≥{first}"


@dataclass(frozen=True, eq=False)
class Relations:
    """Pairs by a relation between positions, for sequences of one length.

    Attributes:
        matrix: Class of every pair, symmetric; the diagonal is not looked at.
        names: The names of the classes.
    """

    matrix: Int[Tensor, "length length"]
    names: tuple[str, ...]
    screens: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        m = self.matrix
        if m.ndim != 2 or m.shape[0] != m.shape[1] or m.dtype.is_floating_point or not torch.equal(m, m.T):
            raise ValueError(f"relations are a symmetric matrix of class numbers, got {m.dtype} {tuple(m.shape)}")
        if not bool(((m >= 0) & (m < len(self.names))).all()):
            raise ValueError(f"class numbers of {len(self.names)} relations are 0..{len(self.names) - 1}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def pairs(self, one: Int[Tensor, "*#shape"], other: Int[Tensor, "*#shape"]) -> Int[Tensor, "*shape"]:
        """Returns the class of each pair of positions."""
        return self.matrix.to(one.device)[one, other]

    def check(self, length: int) -> None:
        """Raises `ValueError` unless sequences are of the length of the matrix."""
        if length != len(self.matrix):
            raise ValueError(f"this profile is of sequences of {len(self.matrix)} tokens, got {length}")

    def label(self, number: int) -> str:
        """The name of a class."""
        return self.names[number]


LEVELS = (1e-3, 1e-2, 0.1, 0.3, 0.7, 1.5)
"""Default bounds of the levels of entropy, in nats."""

FRACTIONS = 8
"""Default number of bins of the masked share."""

_SHARES = torch.logspace(-4, 1, 21, dtype=torch.float64)
"""Bounds of the histogram of movement over the smaller entropy; the first and the last bin are open."""


def share_bin(share: float | Tensor) -> Tensor:
    """The bin of the histogram that a movement over a smaller entropy falls into."""
    return torch.bucketize(torch.as_tensor(share, dtype=torch.float64), _SHARES)


@dataclass(frozen=True, eq=False)
class Profile:
    """Sums of measured movements, by cell; means, errors and prices are read off them.

    A *movement* is one value of `KL(p_i(· | x_j) ‖ p_i)`, in nats; its expectation is `I(x_i; x_j | context)`, which is
    at most the smaller entropy of the two positions. A cell is a class of pairs, a bin of the masked share of the
    sequence, screened or not, and a level of the smaller entropy. Two profiles of the same cells can be added: what was
    measured in parts, or before an interruption, is one measurement.

    Attributes:
        geometry: The classes of pairs.
        fractions: Number of equal bins of the masked share, which is in (0, 1].
        levels: Bounds of the levels of entropy, in nats, increasing.
        pairs: Number of movements in each cell.
        contexts: Number of contexts that contributed to each cell.
        total: Sum of movements.
        smaller: Sum of `min(H_i, H_j)` over the same pairs.
        moves: Histogram of movement over smaller entropy.
        squares: By class and masked share, over contexts with `n` movements of sum `s`: sums of `s²`, `s n` and `n²`.
        measured: Contexts evaluated, in all cells together.
        evaluations: Model evaluations spent, one for each masked sequence evaluated.
        about: What was measured: model, data, seed. Anything JSON can hold.
    """

    geometry: Line | Relations
    fractions: int
    levels: tuple[float, ...]
    pairs: Float[Tensor, "classes fractions screens levels"]
    contexts: Float[Tensor, "classes fractions screens levels"]
    total: Float[Tensor, "classes fractions screens levels"]
    smaller: Float[Tensor, "classes fractions screens levels"]
    moves: Float[Tensor, "classes fractions screens levels shares"]
    squares: Float[Tensor, "3 classes fractions"]
    measured: int = 0
    evaluations: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def empty(geometry: Line | Relations, fractions: int = FRACTIONS, levels: tuple[float, ...] = LEVELS) -> Profile:
        """A profile of nothing yet. As it stands it knows of no independence: every price is an entropy.

        Raises:
            ValueError: If there is no bin of the masked share, or levels do not increase.
        """
        whole("fractions", fractions)
        if list(levels) != sorted(set(levels)) or not all(level > 0 for level in levels):
            raise ValueError(f"levels of entropy are nats > 0 in increasing order, got {levels}")
        cells = (geometry.classes, fractions, geometry.screens, len(levels) + 1)
        sums: dict[str, Any] = {
            name: torch.zeros(cells, dtype=torch.float64) for name in ("pairs", "contexts", "total", "smaller")
        }
        sums["moves"] = torch.zeros(*cells, len(_SHARES) + 1, dtype=torch.float64)
        sums["squares"] = torch.zeros(3, *cells[:2], dtype=torch.float64)
        return Profile(geometry, fractions, tuple(levels), **sums)

    def fraction(self, masked: Int[Tensor, " batch"], tokens: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Returns the bin of the masked share of sequences with so many masks among so many tokens."""
        return ((masked * self.fractions - 1) // tokens.clamp(min=1)).clamp(min=0)

    def level(self, entropy: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Returns the level of an entropy in nats; that of the smaller of two is the smaller of theirs."""
        return torch.bucketize(entropy.double(), torch.tensor(self.levels, dtype=torch.float64, device=entropy.device))

    @property
    def count(self) -> Float[Tensor, "classes fractions"]:
        """Number of movements by class and masked share."""
        return self.pairs.sum((2, 3))

    @property
    def mean(self) -> Float[Tensor, "classes fractions"]:
        """Mean movement by class and masked share, in nats: the pairwise mutual information; NaN where nothing was."""
        return self.total.sum((2, 3)) / self.count

    @property
    def error(self) -> Float[Tensor, "classes fractions"]:
        """Standard error of `mean` over contexts, whose movements are not independent of each other."""
        ss, sn, nn = self.squares
        residual = (ss - 2 * self.mean * sn + self.mean.square() * nn).clamp(min=0)
        return residual.sqrt() / self.count

    def pooled(self, *axes: str) -> Profile:
        """Returns a profile in which `fraction`, `screen` or `level` makes no difference.

        Raises:
            ValueError: If an axis is unknown.
        """
        known = {"fraction": 1, "screen": 2, "level": 3}
        if unknown := [axis for axis in axes if axis not in known]:
            raise ValueError(f"unknown axis {unknown[0]!r}; choose of {', '.join(known)}")
        where = [known[axis] for axis in axes]

        def pool(cells: Tensor) -> Tensor:
            return cells.sum(where, keepdim=True).expand_as(cells) if where else cells

        sums = {name: pool(getattr(self, name)) for name in ("pairs", "contexts", "total", "smaller", "moves")}
        return replace(self, **sums)

    def prices(
        self, *, scaled: bool = True, quantile: float | None = None, prior: float = 5.0
    ) -> Float[Tensor, "classes fractions screens levels"]:
        """Returns what a pair is charged, smoothed so that every cell has a value.

        A cell is averaged with `prior` contexts of its parent, the same class, screen and level at all masked shares,
        and that with as many of its own parent, the same class and screen at all levels. An empty cell takes its
        parent's value; a class without a measurement that of the next smaller class (on the line a nearer pair, which
        depends more); without any, 1 if scaled and infinity if not: what is unknown is priced at its entropy.

        Args:
            scaled: As a share of the smaller entropy of the two, to be multiplied by it; else in nats.
            quantile: Take this quantile of the distribution of shares, not their mean `Σ movement / Σ smaller entropy`.
            prior: Contexts a parent counts for.

        Raises:
            ValueError: If the quantile is not in (0, 1), or asked for in nats, or the prior is negative.
        """
        if not prior >= 0:
            raise ValueError(f"prior must be >= 0 contexts, got {prior}")
        if quantile is not None and not (scaled and 0 < quantile < 1):
            raise ValueError(f"quantiles in (0, 1) are of shares (scaled prices), got {quantile} with scaled={scaled}")
        # What is averaged: one number a cell, or the distribution of shares over the bins of its histogram.
        if quantile is None:
            top, bottom = self.total.unsqueeze(-1), self.smaller if scaled else self.pairs
            unknown = torch.tensor([1.0 if scaled else torch.inf], dtype=torch.float64)
        else:
            top, bottom = self.moves, self.pairs
            unknown = torch.zeros(self.moves.shape[-1], dtype=torch.float64)
            unknown[share_bin(1.0)] = 1.0

        def pooled(axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            sums = (t.sum(axes, keepdim=True) if axes else t for t in (top, bottom, self.contexts))
            above, below, contexts = sums
            return (above / below.unsqueeze(-1)).nan_to_num(0.0, torch.inf), contexts.unsqueeze(-1)

        value, contexts = pooled((1, 3))
        before = unknown.expand_as(value[0])
        for number in range(len(value)):
            before = value[number] = torch.where(contexts[number] > 0, value[number], before)
        for axes in ((1,), ()):
            own, contexts = pooled(axes)
            value = torch.where(contexts > 0, (contexts * own + prior * value) / (contexts + prior), value)
        if quantile is None:
            return value.squeeze(-1)
        bounds = torch.cat([_SHARES, torch.full((1,), torch.inf, dtype=torch.float64)])
        return bounds[(value.cumsum(-1) < quantile).sum(-1).clamp(max=len(_SHARES))]

    def __add__(self, other: Profile) -> Profile:
        """Two measurements of the same cells as one.

        Raises:
            ValueError: If their cells differ.
        """
        same = self._cells() == other._cells()
        if isinstance(self.geometry, Relations) and isinstance(other.geometry, Relations):
            same &= torch.equal(self.geometry.matrix, other.geometry.matrix)
        if not same:
            raise ValueError(f"these profiles have different cells: {self._cells()} and {other._cells()}")
        summed = {name: getattr(self, name) + getattr(other, name) for name in (*SUMS, "measured", "evaluations")}
        return replace(self, **summed)

    def __repr__(self) -> str:
        return f"Profile({self.geometry.classes} classes, {self.measured} contexts, {self.evaluations} evaluations)"

    def _cells(self) -> dict[str, Any]:
        """What the cells are, as plain data, but for the matrix of relations."""
        g = self.geometry
        kind = {"starts": list(g.starts)} if isinstance(g, Line) else {"names": list(g.names)}
        return {**kind, "fractions": self.fractions, "levels": list(self.levels)}

    def save(self, folder: Path) -> None:
        """Writes `profile.safetensors` and `profile.json`, each replaced atomically.

        Raises:
            OSError: If a file cannot be written.
        """
        from safetensors.torch import save

        from ..files.writing import write_atomically

        # The counts go with the sums, so that a crash between the two files mixes nothing up.
        sums = {name: getattr(self, name).contiguous() for name in SUMS}
        sums["moves"] = sums["moves"].int()  # numbers of pairs, and most of the file
        sums["counts"] = torch.tensor([self.measured, self.evaluations])
        if isinstance(self.geometry, Relations):
            sums["relations"] = self.geometry.matrix.int().contiguous()
        text = {"format": FORMAT, **self._cells(), "measured": self.measured, "evaluations": self.evaluations}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "profile.safetensors", save(sums))
        content = json.dumps({**text, "about": self.about}, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "profile.json", content.encode())

    @staticmethod
    def load(folder: Path | str) -> Profile:
        """Reads a profile from the folder it was saved to.

        Raises:
            AdapterError: If a file is missing, damaged, or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        from ..files.reading import why

        folder = Path(folder)
        path = folder / "profile.json"
        try:
            text = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(text, dict) or text.get("format") != FORMAT:
                raise AdapterError(f'{path} is no dependence profile: expected "format": {FORMAT!r}')
            sums = load((folder / "profile.safetensors").read_bytes())
            geometry = (
                Line(tuple(text["starts"]))
                if "starts" in text
                else Relations(sums.pop("relations").long(), tuple(text["names"]))
            )
            empty = Profile.empty(geometry, text["fractions"], tuple(text["levels"]))
            shapes = {name: tuple(getattr(empty, name).shape) for name in SUMS} | {"counts": (2,)}
            if {name: tuple(tensor.shape) for name, tensor in sums.items()} != shapes:
                raise ValueError(f"its tensors should be {shapes}")
            measured, evaluations = sums.pop("counts").tolist()
            sums = {name: tensor.double() for name, tensor in sums.items()}
            return replace(empty, **sums, measured=measured, evaluations=evaluations, about=dict(text["about"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(
                f"cannot read a dependence profile from {folder} ({why(error)}); `unmask profile` makes"
                " profile.json and profile.safetensors there"
            ) from error


SUMS = ("pairs", "contexts", "total", "smaller", "moves", "squares")
"""The tensors of a profile, which add up."""


def load_profile(model: str | Path) -> Profile:
    """Loads the dependence profile that lies beside a model, or in a folder of its own.

    Args:
        model: The name of an embedded model, or a folder with `profile.json` and `profile.safetensors`.

    Raises:
        AdapterError: If there is no such folder, or no profile in it.
    """
    with model_folder(model) as folder:
        return Profile.load(folder)
