"""How far two computations of the same number may be apart for rounding alone, on whatever processor."""

from __future__ import annotations

import torch


def allowed(terms: int, size: float | torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """The difference that `terms` additions, one after the other, of numbers of `size` may make.

    Each rounds by at most half of `eps`, in both computations, and no two processors need to add in the same order.
    For a network, the terms are those of the sums on the way from the input to a logit: layers times widths. A tensor
    stands for its largest entry.
    """
    largest = float(size.abs().max()) if isinstance(size, torch.Tensor) else size
    return terms * torch.finfo(dtype).eps * largest
