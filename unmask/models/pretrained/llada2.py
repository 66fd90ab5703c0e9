"""LLaDA2.0 and 2.1: the library's GLM-4 mixture of experts, with their own attention and router.

Each token goes to a few of many small experts, which are divided into groups: first the best groups are chosen, then
the best experts in them. A bias per expert, with which training balances their load, affects only this choice.

References:
    Bie et al. (2025), arXiv:2512.15745, LLaDA2.0; the arithmetic is that of `models/llada2_moe/modeling_llada2_moe.py`
    in the authors' repository inclusionAI/dFactory.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import (
    Glm4MoeAttention,
    Glm4MoeMoE,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from ...checks import whole
from .counterparts import BOTH_WAYS
from .settings import ABOUT, Settings, rope_theta

_NEEDED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps"),
    *("num_experts", "num_experts_per_tok", "num_shared_experts", "moe_intermediate_size", "first_k_dense_replace"),
    *("n_group", "topk_group", "routed_scaling_factor", "partial_rotary_factor"),
)

LLADA2 = Settings(
    honoured=frozenset(
        (
            *_NEEDED,
            *("intermediate_size", "head_dim", "rotary_dim", "max_position_embeddings", "use_qk_norm", "use_qkv_bias"),
            *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "quantization_config"),
        )
    ),
    fixed={
        "hidden_act": ("silu",),
        "is_causal": (False, None),
        "moe_router_enable_expert_bias": (True, None),
        "norm_head": (False, None),
        "norm_softmax": (False, None),
        "norm_topk_prob": (True, None),
        "num_nextn_predict_layers": (0, None),
        "router_dtype": ("fp32", None),
        "score_function": ("sigmoid", None),
        "use_bias": (False,),
        "use_rmsnorm": (True, None),
        "use_sliding_window": (False, None),
        "using_split_qkv_in_self_attention": (False, None),
    },
    harmless=ABOUT
    | {
        "attention_dropout",  # used in training only
        "embedding_dropout",
        "output_dropout",
        "initializer_range",  # for new weights; here they are read from the files
        "max_window_layers",  # part of use_sliding_window, which is off
        "sliding_window",
        "output_router_logits",  # changes only what is returned
    },
    needed=_NEEDED,  # every published configuration has them, so no default is assumed
)

LLADA2_NAMES = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"^model\.layers\.(\d+)\.attention\.dense\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.layers\.(\d+)\.attention\.query_layernorm\.": r"model.layers.\1.self_attn.q_norm.",
    r"^model\.layers\.(\d+)\.attention\.key_layernorm\.": r"model.layers.\1.self_attn.k_norm.",
    r"^model\.layers\.(\d+)\.attention\.query_key_value\.": r"model.layers.\1.self_attn.query_key_value.",
}
"""Patterns of LLaDA2's tensor names, and the names in `LLaDA2ForMaskedLM`."""


def llada2_config(config: dict[str, Any]) -> Glm4MoeConfig:
    """Returns the configuration of the network that computes the same as a LLaDA2.

    Args:
        config: The content of its `config.json`.

    Raises:
        ValueError: If a setting is missing, has no counterpart here, or does not fit the others. The message names it.
    """
    LLADA2.check(config)
    numbers = ("hidden_size", "num_attention_heads", "num_shared_experts", "moe_intermediate_size", "n_group")
    hidden, heads, shared, inner, groups = (whole(name, config[name]) for name in numbers)
    experts, chosen_groups = whole("num_experts", config["num_experts"], 2 * groups), config["topk_group"]
    if experts % groups:
        raise ValueError(f"num_experts {experts} cannot be divided into n_group {groups} groups of equal size")
    whole("topk_group", chosen_groups, 1, groups)
    whole("num_experts_per_tok", config["num_experts_per_tok"], 1, chosen_groups * experts // groups)
    dense = whole("first_k_dense_replace", config["first_k_dense_replace"], 0)
    if dense and config.get("intermediate_size") is None:
        raise ValueError(f"the configuration lacks intermediate_size, the MLP size of the first {dense} layers")
    head = whole("head_dim", hidden // heads if config.get("head_dim") is None else config["head_dim"])
    rotary = int(head * config["partial_rotary_factor"])
    if config.get("rotary_dim") not in (None, rotary):
        raise ValueError(
            f"rotary_dim {config['rotary_dim']} does not fit: partial_rotary_factor times head_dim is {rotary}"
        )
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    same += ("vocab_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "quantization_config")
    same += ("num_experts_per_tok", "n_group", "topk_group")
    positions = {"rope_type": "default", "rope_theta": rope_theta(config, None)}
    fields: dict[str, Any] = {
        **{name: config[name] for name in same if config.get(name) is not None},
        "first_k_dense_replace": dense,
        "n_routed_experts": experts,
        "n_shared_experts": shared,
        "moe_intermediate_size": inner,
        "routed_scaling_factor": float(config["routed_scaling_factor"]),
        "head_dim": head,
        "attention_bias": bool(config.get("use_qkv_bias")),
        "use_qk_norm": config.get("use_qk_norm") is not False,  # the authors' code has no other way
        "rope_parameters": {**positions, "partial_rotary_factor": config["partial_rotary_factor"]},
        **BOTH_WAYS,
    }
    return Glm4MoeConfig(**fields)


class FusedAttention(Glm4MoeAttention):
    """Attention whose queries, keys and values come from one fused projection.

    Args:
        config: The configuration of the model.
        layer: The index of the layer, from 0.
    """

    def __init__(self, config: Glm4MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.q_proj, self.k_proj, self.v_proj
        self.is_causal = False
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        width = sum(self.heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch width hidden"],
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch width hidden"], Tensor | None]:
        """Returns the attention output, after its output projection, and the attention weights if they are computed."""
        shape = hidden_states.shape[:-1]
        fused = self.query_key_value(hidden_states).view(*shape, sum(self.heads), self.head_dim)
        query, key, value = fused.split(self.heads, dim=-2)
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            assert self.layer_idx is not None
            key, value = past_key_values.update(key, value, self.layer_idx)
        way = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(way, eager_attention_forward)
        seen, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(seen.reshape(*shape, -1).contiguous()), weights


class GroupRouter(nn.Module):
    """The router: chooses the experts of each token, and their weights.

    An expert's score is the sigmoid of its logit. The score of a group is the sum of its two best scores, with the bias
    added to each; experts are chosen from the best groups only, by the biased score. The weights are the scores without
    the bias, normalised to sum to 1 if there are several, times `routed_scaling_factor`.

    Args:
        config: The configuration of the model.
    """

    def __init__(self, config: Glm4MoeConfig) -> None:
        super().__init__()
        self.chosen, self.groups, self.chosen_groups = config.num_experts_per_tok, config.n_group, config.topk_group
        self.factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.n_routed_experts))
        self.expert_bias: Tensor

    def forward(
        self, x: Float[Tensor, "tokens hidden"]
    ) -> tuple[Int[Tensor, "tokens chosen"], Float[Tensor, "tokens chosen"]]:
        """Returns the experts of each token, and their weights, in float32."""
        scores = nn.functional.linear(x.float(), self.weight.float()).sigmoid()
        biased = (scores + self.expert_bias.float()).unflatten(-1, (self.groups, -1))
        groups = biased.topk(2, dim=-1).values.sum(-1).topk(self.chosen_groups, dim=-1).indices
        outside = torch.ones_like(biased[..., 0], dtype=torch.bool).scatter(-1, groups, False)
        chosen = biased.masked_fill(outside.unsqueeze(-1), -torch.inf).flatten(-2).topk(self.chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.chosen > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.factor


class Mixture(Glm4MoeMoE):
    """A mixture-of-experts layer: each token goes to a few routed experts and to all shared experts.

    Args:
        config: The configuration of the model.
    """

    def __init__(self, config: Glm4MoeConfig) -> None:
        super().__init__(config)
        self.gate = GroupRouter(config)

    def forward(self, hidden_states: Float[Tensor, "batch width hidden"]) -> Float[Tensor, "batch width hidden"]:
        """Returns the weighted sum of the chosen experts' outputs, plus the output of the shared experts."""
        flat = hidden_states.flatten(0, 1)
        routed = self.experts(flat, *self.gate(flat)).view_as(hidden_states)
        return routed + self.shared_experts(hidden_states)


class LLaDA2ForMaskedLM(Glm4MoeForCausalLM):
    """The network of LLaDA2.0 and 2.1.

    Args:
        config: Made by `llada2_config`.
    """

    _keep_in_fp32_modules_strict = ("expert_bias",)
    _keys_to_ignore_on_load_unexpected = None  # so that every tensor that is left over is reported

    def __init__(self, config: Glm4MoeConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = FusedAttention(config, number)
            if number >= config.first_k_dense_replace:
                layer.mlp = Mixture(config)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Returns true; the library would look for a decorator in this file, but its experts are in another file."""
        return True
