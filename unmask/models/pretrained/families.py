"""Families of diffusion language models on causal architectures: a table with one entry per family.

No code of a checkpoint is run: every family is computed by a class of the Transformers library or of this package. Its
entry says by which class, how its tensors are named, what its attention is, and what its files leave out.

References:
    Nie et al. (2025), arXiv:2502.09992, LLaDA; Ye et al. (2025), arXiv:2508.15487, Dream; Cheng et al. (2025),
    arXiv:2510.06303, SDAR; Wang et al. (2025), arXiv:2509.06949, TraDo; Wu et al. (2025), arXiv:2509.26328, Fast-dLLM
    v2; Wu et al. (2026), arXiv:2606.19257, DreamReasoner; arXiv:2606.25331, iLLaDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ...errors import AdapterError
from .counterparts import Counterpart, checked_as, plain_as, with_head_size
from .dit import DiTForMaskedLM, bd3lm_config, mdlm_config
from .llada import LLADA_NAMES, llada_config
from .llada2 import LLADA2_NAMES, LLaDA2ForMaskedLM, llada2_config
from .llada_moe import MARKS, llada_moe_config
from .settings import DREAM, FAST_DLLM, ILLADA, SDAR, SDAR_MOE


@dataclass(frozen=True)
class Family:
    """How the checkpoints of a family are read.

    Attributes:
        name: The family's name in messages.
        kinds: Its values of `model_type`, in lower case.
        config: The function that makes the configuration of the network from the content of `config.json`.
        auto: The class of the network.
        marks: Fields of which each of its configurations has at least one. They distinguish two architectures that
            share a `model_type`; the family with marks then stands first in `FAMILIES`. Default: any configuration.
        names: Patterns of the tensor names in the files, and the names in the network; default: they are the same.
        shift: Whether position `i` is predicted by output `i - 1`; default: the configuration says it
            (`right_shift_logits`), or the user does.
        mask_id: The mask token of the published models, for files that do not name it.
        attention: What a position attends to: all positions (`"both ways"`), its own block and those before it
            (`"blocks"`), or all positions unless the user gives a block length (`"either"`).
        block_fields: Fields of `config.json` that may give the block length; the first one present counts.
        block: The block length of the published models, for a configuration that does not give it.
    """

    name: str
    kinds: tuple[str, ...]
    config: Counterpart
    auto: type[PreTrainedModel]
    marks: tuple[str, ...] = ()
    names: Mapping[str, str] | None = None
    shift: bool | None = None
    mask_id: int | None = None
    attention: Literal["both ways", "blocks", "either"] = "both ways"
    block_fields: tuple[str, ...] = ()
    block: int | None = None

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Returns whether the content of a `config.json` describes a model of this family."""
        kind = str(config.get("model_type")).lower()
        return kind in self.kinds and (not self.marks or any(config.get(mark) is not None for mark in self.marks))

    def shift_of(self, folder: Path, config: Mapping[str, Any], given: bool | None) -> bool:
        """Returns whether position `i` is predicted by output `i - 1`.

        Args:
            folder: The folder, named in the messages.
            config: The content of its `config.json`.
            given: The user's setting `shift`; `None` if there is none.

        Raises:
            AdapterError: If the user contradicts the family or the files, or none of them says it.
        """
        usual = config.get("right_shift_logits") if self.shift is None else self.shift
        if given is not None and usual is not None and given != usual:
            raise AdapterError(f"{folder}: {self.name} models are read with shift={usual}, not {given}")
        shift = usual if given is None else given
        if shift is None:
            raise AdapterError(
                f"{folder} holds a {config['model_type']} model, which is causal; if it was adapted to unmask, say"
                " whether position i is predicted by output i - 1: shift=True or shift=False"
            )
        return shift

    def block_of(self, folder: Path, config: Mapping[str, Any], given: int | None) -> int | None:
        """Returns the block length of the attention, or `None` if a position attends to all others.

        Args:
            folder: The folder, named in the messages.
            config: The content of its `config.json`.
            given: The user's setting `block_causal`; `None` if there is none.

        Raises:
            AdapterError: If the user contradicts the files, the files give a length that is not a whole number >= 1, or
                the attention is in blocks and their length is not known.
            ValueError: If the user gives a length, but the family's attention is not in blocks.
        """
        if self.attention == "both ways" and given is not None:
            raise ValueError(f"block_causal does not apply to {folder}: a {self.name} attends to all positions")
        if self.attention != "blocks":
            return given
        field = next((name for name in self.block_fields if config.get(name) is not None), None)
        if field is not None and given not in (None, config[field]):
            raise AdapterError(
                f"{folder}: config.json says {field} = {config[field]!r:.60}, but block_causal={given} is given; leave"
                " block_causal out"
            )
        said = self.block if field is None else config[field]
        if isinstance(said, bool) or not isinstance(said, int | None) or (said is not None and said < 1):
            raise AdapterError(f"{folder}: {field} must be a whole number of positions >= 1, got {said!r:.60}")
        size = said if given is None else given
        if size is None:
            raise AdapterError(
                f"{folder} holds a {self.name}, whose attention is in blocks, but config.json does not give their"
                " length; give block_causal=... (--block-causal)"
            )
        return size


def _adapted(kind: str, counterpart: Counterpart, auto: type[PreTrainedModel]) -> Family:
    """Returns a family for a causal architecture that was adapted to unmask; its `model_type` may start with `a2d-`."""
    return Family(kind, (kind, f"a2d-{kind}"), counterpart, auto, attention="either")


FAMILIES: tuple[Family, ...] = (
    Family(
        "LLaDA-MoE",
        ("llada", "lladamoe"),
        llada_moe_config,
        Qwen3MoeForCausalLM,
        marks=MARKS,
        shift=False,
        mask_id=156895,
    ),
    Family("llada", ("llada",), llada_config, LlamaForCausalLM, names=LLADA_NAMES, shift=False),
    Family(
        "DreamReasoner",
        ("dream",),
        with_head_size(checked_as(Qwen3Config, SDAR)),
        Qwen3ForCausalLM,
        marks=("block_size",),
        shift=False,
        mask_id=151669,
        attention="blocks",
        block_fields=("block_size",),
    ),
    Family("dream", ("dream",), checked_as(Qwen2Config, DREAM), Qwen2ForCausalLM, shift=True),
    Family(
        "LLaDA2",
        ("llada2_moe",),
        llada2_config,
        LLaDA2ForMaskedLM,
        names=LLADA2_NAMES,
        shift=False,
        mask_id=156895,
        attention="blocks",
        block=32,
    ),
    Family("iLLaDA", ("illada",), checked_as(LlamaConfig, ILLADA), LlamaForCausalLM, shift=False, mask_id=5),
    Family(
        "SDAR",
        ("sdar",),
        checked_as(Qwen3Config, SDAR),
        Qwen3ForCausalLM,
        shift=False,
        mask_id=151669,
        attention="blocks",
        block_fields=("block_size",),
    ),
    Family(
        "SDAR-MoE",
        ("sdar_moe",),
        checked_as(Qwen3MoeConfig, SDAR_MOE),
        Qwen3MoeForCausalLM,
        shift=False,
        mask_id=151669,
        attention="blocks",
        block_fields=("block_size",),
    ),
    Family(
        "Fast-dLLM v2",
        ("fast_dllm_qwen",),
        checked_as(Qwen2Config, FAST_DLLM),
        Qwen2ForCausalLM,
        shift=True,
        mask_id=151665,
        attention="blocks",
        block_fields=("bd_size",),
        block=32,
    ),
    Family("MDLM", ("mdlm",), mdlm_config, DiTForMaskedLM, shift=False, mask_id=50257),
    Family(
        "BD3LM",
        ("bd3lm",),
        bd3lm_config,
        DiTForMaskedLM,
        shift=False,
        mask_id=50257,
        attention="blocks",
        block_fields=("block_size",),
    ),
    _adapted("llama", plain_as(LlamaConfig), LlamaForCausalLM),
    _adapted("qwen2", plain_as(Qwen2Config), Qwen2ForCausalLM),
    _adapted("qwen3", plain_as(Qwen3Config), Qwen3ForCausalLM),
)
"""The families; a configuration is read by the first one that matches it."""


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Returns the family of the model that a `config.json` describes, or `None` if it is not a known one."""
    return next((family for family in FAMILIES if family.matches(config)), None)


def known() -> str:
    """Returns the names of the families, and advice about a model of another family, for a message."""
    names = ", ".join(family.name for family in FAMILIES)
    return f"known are {names}; if it computes the same as one of these, put that model_type into its config.json"
