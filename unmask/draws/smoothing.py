"""Label smoothing: the certainty it hides, and the distribution without it.

A model that was trained on labels smoothed by ε over `V` classes, to its optimum, says `q = (1 - ε) p + ε/V` where it
means `p`. So `q` is never more certain than one class of `1 - ε + ε/V` and `V - 1` of `ε/V`: entropies have a floor,
which a rule that bounds them cannot tell from doubt.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def checked_smoothing(smoothing: object) -> float:
    """Returns a label smoothing.

    Raises:
        ValueError: If it is not a number in [0, 1).
    """
    if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is the ε of label smoothing, a number in [0, 1), such as 0.1, got {smoothing!r}")
    return float(smoothing)


def without_smoothing(logits: Float[Tensor, "rows classes"], smoothing: float) -> Float[Tensor, "rows classes"]:
    """Returns the logarithms of `p = (q - ε/V) / (1 - ε)`, with `q` the softmax of the logits over all `V` classes.

    No model is at its optimum, and numbers are rounded: where `q` is below `ε/V`, `p` would be negative and is 0 (its
    logit `-inf`), and the rows then sum to a little more than 1, which a softmax divides out. The largest `q` of a row
    is at least `1/V`, so that some class always keeps mass.

    Args:
        logits: The logits of every class that the labels were smoothed over, those that are never an answer included.
        smoothing: ε; at 0, the logits come back as they are.

    Raises:
        ValueError: If ε is not in [0, 1).

    References:
        Szegedy et al. (2016), arXiv:1512.00567, section 7, for the smoothed labels.
    """
    if checked_smoothing(smoothing) == 0:
        return logits
    # In double precision: the difference of two nearly equal numbers is all that is left of an improbable class.
    q = logits.double().softmax(-1)
    p = ((q - smoothing / logits.shape[-1]) / (1 - smoothing)).clamp(min=0)
    return p.log().to(logits.dtype)


def smoothed_entropy(smoothing: float, classes: int, left_out: int = 0) -> float:
    """Returns the entropy, in nats, of a distribution that is certain of one class, under label smoothing.

    Args:
        smoothing: ε.
        classes: `V`, how many classes the labels were smoothed over.
        left_out: How many of them were taken out afterwards, such as the mask token, and their mass divided out.

    Raises:
        ValueError: If ε is not in [0, 1), or fewer than one class is left.
    """
    if not 0 <= left_out < classes:
        raise ValueError(f"{left_out} of {classes} classes taken out leave none")
    each = checked_smoothing(smoothing) / classes
    total = 1 - left_out * each
    rest, sure = each / total, (1 - smoothing + each) / total
    return -sure * math.log(sure) - ((classes - left_out - 1) * rest * math.log(rest) if rest > 0 else 0.0)


def smoothing_of(entropy: float, classes: int, left_out: int = 0) -> float:
    """Returns the label smoothing under which a certain distribution has an entropy: the inverse of `smoothed_entropy`.

    Args:
        entropy: In nats; no less than 0, and no more than that of a uniform distribution.
        classes: As there.
        left_out: As there.
    """
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed_entropy(middle, classes, left_out) < entropy else (low, middle)
    return low
