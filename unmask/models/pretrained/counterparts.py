"""Configurations of the library's own models that compute what a published one computes.

These are for layouts whose `config.json` uses the library's names of fields; a setting that the counterpart would not
hear of is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from .gate import without_code
from .settings import Settings, rope_theta

BOTH_WAYS: dict[str, Any] = {
    "is_causal": False,
    "use_cache": False,
    "pad_token_id": None,  # else the embedding of the padding token, which may be the end token, is not trained
    "bos_token_id": None,
    "eos_token_id": None,
}
"""What every counterpart is told: attention is not causal, nothing is kept, and no token is special to it."""

Counterpart = Callable[[dict[str, Any]], PreTrainedConfig]
"""Makes the library's configuration of the content of a `config.json`; raises a `ValueError` if there is none."""


def checked_as(kind: type[PreTrainedConfig], settings: Settings) -> Counterpart:
    """Returns what makes configurations of a class from fields of the same names, every one of them known.

    Args:
        kind: The class.
        settings: Which fields are handed on, must have one value, and are passed over.
    """

    def counterpart(config: dict[str, Any]) -> PreTrainedConfig:
        settings.check(config)
        kinds = config.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise ValueError(f"unsupported: layer_types {kinds!r:.120}; every layer looks at all positions")
        names = settings.honoured - {"layer_types", "rope_theta", "rope_scaling", "rope_parameters"}
        given: dict[str, Any] = dict(settings.usual)
        given |= {name: config[name] for name in sorted(names) if name in config}
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta(config, settings.rope_theta)}
        if "use_sliding_window" in settings.fixed:
            given["use_sliding_window"] = False
        return kind(**given, **BOTH_WAYS)

    return counterpart


def with_head_size(counterpart: Counterpart) -> Counterpart:
    """Returns the same, for layouts whose heads share the width equally unless `head_dim` says otherwise.

    The library's Qwen3 takes a missing `head_dim` for 128.
    """

    def complete(config: dict[str, Any]) -> PreTrainedConfig:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if config.get("head_dim") is None and isinstance(width, int) and isinstance(heads, int) and heads > 0:
            config = {**config, "head_dim": width // heads}
        return counterpart(config)

    return complete


def plain_as(kind: type[PreTrainedConfig]) -> Counterpart:
    """Returns what makes configurations of a class of the library from one that the library itself reads.

    Args:
        kind: The class.
    """

    def counterpart(config: dict[str, Any]) -> PreTrainedConfig:
        given = {
            key: value for key, value in without_code(config).items() if key not in ("model_type", "architectures")
        }
        return kind(**{**given, **BOTH_WAYS})

    return counterpart
