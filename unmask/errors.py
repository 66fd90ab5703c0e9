"""What a user can get wrong: every exception this package raises on purpose.

Arguments out of range raise plain `ValueError`; the classes here carry more than a message.
"""

from __future__ import annotations


class UnmaskError(Exception):
    """Base class of this package's own exceptions."""


class AdapterError(UnmaskError, ValueError):
    """A checkpoint that cannot be read, is of another kind, or does not fit."""


class DataError(UnmaskError, ValueError):
    """A data file with a line that cannot be used; the message names the line."""


class RuleError(UnmaskError, ValueError):
    """A rule that broke its contract: it unmasked nothing, or a position that is no candidate."""


class LogitsError(UnmaskError, ValueError):
    """A denoiser returned logits that are no distribution: NaN, `+inf`, or no mass at all.

    Attributes:
        row: Index of the offending row of the logits.
        reason: What is wrong with it.
    """

    def __init__(self, row: int, reason: str, place: str = "") -> None:
        self.row, self.reason = row, reason
        super().__init__(f"the denoiser's logits in row {row}{place} {reason}")
