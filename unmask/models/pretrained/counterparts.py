"""Configurations of the Transformers library's own models that compute the same as a published model.

These are for layouts whose `config.json` uses the library's field names. A setting that the library's model does not
support is refused, and the message names it.
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
    "pad_token_id": None,  # or the embedding of the padding token, which may be the end token, would not be trained
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Settings of every counterpart: attention is not causal, there is no key/value cache, and no token is special."""

Counterpart = Callable[[dict[str, Any]], PreTrainedConfig]
"""A function from the content of a `config.json` to the library's configuration.

It raises a `ValueError` if no configuration of the library describes the same network.
"""


def checked_as(kind: type[PreTrainedConfig], settings: Settings) -> Counterpart:
    """Returns a counterpart for layouts whose fields have the names of the library's, all of which must be known.

    Args:
        kind: The library's configuration class.
        settings: Which fields are passed on, which must have one value, and which are ignored.
    """

    def counterpart(config: dict[str, Any]) -> PreTrainedConfig:
        settings.check(config)
        kinds = config.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise ValueError(f"unsupported: layer_types {kinds!r:.120}; every layer must attend to all positions")
        names = settings.honoured - {"layer_types", "rope_theta", "rope_scaling", "rope_parameters"}
        given: dict[str, Any] = dict(settings.usual)
        given |= {name: config[name] for name in sorted(names) if name in config}
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta(config, settings.rope_theta)}
        if "use_sliding_window" in settings.fixed:
            given["use_sliding_window"] = False
        return kind(**given, **BOTH_WAYS)

    return counterpart


def with_head_size(counterpart: Counterpart) -> Counterpart:
    """Returns a counterpart that fills in a missing `head_dim`: the hidden size divided by the number of heads.

    The library's Qwen3 would take a missing `head_dim` for 128.

    Args:
        counterpart: The function that reads the completed configuration.
    """

    def complete(config: dict[str, Any]) -> PreTrainedConfig:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if config.get("head_dim") is None and isinstance(width, int) and isinstance(heads, int) and heads > 0:
            config = {**config, "head_dim": width // heads}
        return counterpart(config)

    return complete


def plain_as(kind: type[PreTrainedConfig]) -> Counterpart:
    """Returns a counterpart for layouts that the library itself reads.

    Args:
        kind: The library's configuration class.
    """

    def counterpart(config: dict[str, Any]) -> PreTrainedConfig:
        given = {
            key: value for key, value in without_code(config).items() if key not in ("model_type", "architectures")
        }
        return kind(**{**given, **BOTH_WAYS})

    return counterpart
