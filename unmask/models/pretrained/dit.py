"""MDLM and BD3LM: diffusion Transformers (DiT) over tokens, with bidirectional or block-causal attention.

The architecture has timestep conditioning (adaLN): an embedding of the noise level shifts and scales the output of each
layer norm and gates the residual branches. The published models do not use it (`time_conditioning` is false): their
noise level is always 0, so the conditioning is a constant.

References:
    Sahoo et al. (2024), arXiv:2406.07524, MDLM; Arriola et al. (2025), arXiv:2503.09573, BD3LM; the arithmetic is that
    of `models/dit.py` in kuleshov-group/mdlm and of `models/hf/modeling_bd3lm.py` in kuleshov-group/bd3lms.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from ...checks import whole
from .counterparts import BOTH_WAYS
from .settings import ABOUT, Settings

_WIDER = 4
"""Hidden size of an MLP, as a multiple of the hidden size of the network."""
_FREQUENCIES = 256
"""Size of the sinusoidal timestep embedding: half of it are cosines, half sines."""
_THETA = 10000.0
"""Base of the rotary position embedding."""

_SIZES = ("hidden_dim", "n_blocks", "n_heads", "vocab_size", "model_length")

MDLM = Settings(
    honoured=frozenset((*_SIZES, "cond_dim", "adaln", "quantization_config")),
    fixed={
        "causal": (False, None),
        "cross_attn": (False, None),
        "scale_by_sigma": (True, False, None),  # no code reads it
        "tie_word_embeddings": (False, None),
        "time_conditioning": (False,),
    },
    harmless=ABOUT | {"attn_backend", "dropout"},  # another way to compute the same; used in training only
    needed=(*_SIZES, "time_conditioning"),
)

BD3LM = Settings(
    honoured=MDLM.honoured | {"block_size"},
    fixed={**MDLM.fixed, "cross_attn": (True,)},
    harmless=MDLM.harmless | {"var_min", "sampling_eps_min", "sampling_eps_max"},  # used in training only
    needed=(*MDLM.needed, "block_size"),
)


def mdlm_config(config: dict[str, Any]) -> PreTrainedConfig:
    """Returns the configuration of an MDLM's network.

    Args:
        config: The content of its `config.json`.

    Raises:
        ValueError: If a setting is missing, unsupported, or does not fit the others. The message names it.
    """
    return _config(config, MDLM)


def bd3lm_config(config: dict[str, Any]) -> PreTrainedConfig:
    """Returns the configuration of a BD3LM's network.

    Args:
        config: The content of its `config.json`.

    Raises:
        ValueError: If a setting is missing, unsupported, or does not fit the others. The message names it.
    """
    return _config(config, BD3LM)


def _config(config: dict[str, Any], settings: Settings) -> PreTrainedConfig:
    settings.check(config)
    hidden, layers, heads, vocab, length = (whole(name, config[name]) for name in _SIZES)
    if hidden % (2 * heads):
        raise ValueError(f"hidden_dim {hidden} cannot be divided among n_heads {heads} heads of an even size")
    told = config.get("adaln") is not False
    if told and config.get("cond_dim") is None:
        raise ValueError("the configuration lacks cond_dim")
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "time_size": whole("cond_dim", config["cond_dim"]) if told else None,
        "tie_word_embeddings": False,
        **({"quantization_config": config["quantization_config"]} if "quantization_config" in config else {}),
        **BOTH_WAYS,
    }
    return PreTrainedConfig(**fields)


class Norm(nn.Module):
    """Layer norm in float32, with a weight and no bias.

    Args:
        width: The hidden size.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch width hidden"]) -> Float[Tensor, "batch width hidden"]:
        """Returns the hidden states normalised to mean 0 and variance 1, times the weight."""
        return nn.functional.layer_norm(x.float(), x.shape[-1:]).to(self.weight.dtype) * self.weight


class Time(nn.Module):
    """The timestep embedding: an MLP over sinusoidal features of the noise level, which is always 0.

    Args:
        width: Size of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self) -> Float[Tensor, " hidden"]:
        """Returns the embedding of noise level 0."""
        weight = next(self.mlp.parameters())
        shown = torch.arange(_FREQUENCIES, device=weight.device) < _FREQUENCIES // 2  # cosines of 0 are 1, sines are 0
        return nn.functional.silu(self.mlp(shown.to(weight.dtype)))


class Modulation(nn.Linear):
    """The adaLN projection: computes shifts, scales and gates of a layer from the timestep embedding.

    Args:
        time: Size of the timestep embedding.
        count: Number of vectors to compute.
        width: The hidden size, which is the size of each vector.
    """

    def __init__(self, time: int, count: int, width: int) -> None:
        super().__init__(time, count * width)
        self.count = count

    def vectors(self, time: Float[Tensor, " hidden"]) -> tuple[Tensor, ...]:
        """Returns the `count` vectors, of shape `(hidden,)` each."""
        return self(time).chunk(self.count)


class Block(nn.Module):
    """A Transformer block: self-attention and an MLP, each after a layer norm, with adaLN if the model has it.

    Args:
        config: The configuration of the model.
        number: The index of the layer, from 0.
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.number, self.heads = config, number, config.num_attention_heads
        self.is_causal, self.num_key_value_groups = False, 1
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn_qkv, self.attn_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, _WIDER * width), nn.GELU(approximate="tanh"), nn.Linear(_WIDER * width, width)
        )
        self.adaLN_modulation = None if config.time_size is None else Modulation(config.time_size, 6, width)

    def forward(
        self,
        x: Float[Tensor, "batch width hidden"],
        positions: tuple[Tensor, Tensor],
        time: Float[Tensor, " hidden"] | None,
        mask: Tensor | None,
        kept: Cache | None,
    ) -> Float[Tensor, "batch width hidden"]:
        """Returns the hidden states after the block.

        Args:
            x: The hidden states.
            positions: Cosines and sines of the rotary position embedding.
            time: The timestep embedding, for a model with adaLN.
            mask: The attention mask that is added to the scores, in four dimensions; `None`: no mask.
            kept: The key/value cache.
        """
        if self.adaLN_modulation is None or time is None:
            x = x + self.attention(self.norm1(x), positions, mask, kept)
            return x + self.mlp(self.norm2(x))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation.vectors(time)
        x = x + gate * self.attention(self.norm1(x) * (1 + scale) + shift, positions, mask, kept)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp)

    def attention(
        self,
        x: Float[Tensor, "batch width hidden"],
        positions: tuple[Tensor, Tensor],
        mask: Tensor | None,
        kept: Cache | None,
    ) -> Float[Tensor, "batch width hidden"]:
        """Returns the attention output, after its output projection; for the arguments see `forward`."""
        fused = self.attn_qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(-3))
        query, key = apply_rotary_pos_emb(query, key, *positions)
        if kept is not None:
            key, value = kept.update(key, value, self.number)
        way = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(way, eager_attention_forward)
        seen, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=query.shape[-1] ** -0.5)
        return self.attn_out(seen.flatten(-2))


class Embedding(nn.Module):
    """The token embedding.

    Args:
        tokens: Size of the vocabulary.
        width: The hidden size.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width))

    def forward(self, x: Int[Tensor, "batch width"]) -> Float[Tensor, "batch width hidden"]:
        """Returns the embeddings of tokens."""
        return self.embedding[x]


class Last(nn.Module):
    """The output layer: the final layer norm and the output projection (language-model head).

    Args:
        config: The configuration of the model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final, self.linear = Norm(width), nn.Linear(width, config.vocab_size)
        self.adaLN_modulation = None if config.time_size is None else Modulation(config.time_size, 2, width)

    def forward(
        self, x: Float[Tensor, "batch width hidden"], time: Float[Tensor, " hidden"] | None
    ) -> Float[Tensor, "batch width hidden"]:
        """Returns the normalised hidden states, to which the output projection is applied."""
        if self.adaLN_modulation is None or time is None:
            return self.norm_final(x)
        shift, scale = self.adaLN_modulation.vectors(time)
        return self.norm_final(x) * (1 + scale) + shift


class Body(nn.Module):
    """The network up to the hidden states, without applying the output projection.

    Args:
        config: The configuration of the model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.rotations: int = config.hidden_size // config.num_attention_heads // 2
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = None if config.time_size is None else Time(config.time_size)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.num_hidden_layers))
        self.output_layer = Last(config)

    def forward(
        self,
        input_ids: Int[Tensor, "batch width"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch width"] | None = None,
        past_key_values: Cache | None = None,
    ) -> BaseModelOutput:
        """Returns the final hidden states.

        Args:
            input_ids: Token ids.
            attention_mask: In two dimensions, `[batch, width]`: 0 at positions that are not attended to. In four,
                `[batch, 1, width, keys]`: what is added to the attention scores.
            position_ids: Positions of the tokens; default: 0, 1, 2, and so on.
            past_key_values: The key/value cache.
        """
        x = self.vocab_embed(input_ids)
        places = torch.arange(x.shape[1], device=x.device).unsqueeze(0) if position_ids is None else position_ids
        steps = torch.arange(self.rotations, device=x.device) / self.rotations
        angles = places.unsqueeze(-1) * _THETA**-steps
        angles = torch.cat([angles, angles], dim=-1)
        positions = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        if attention_mask is not None and attention_mask.ndim == 2:
            hidden = attention_mask[:, None, None, :] == 0
            attention_mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device)
            attention_mask = attention_mask.masked_fill_(hidden, torch.finfo(x.dtype).min)
        time = None if self.sigma_map is None else self.sigma_map()
        for block in self.blocks:
            x = block(x, positions, time, attention_mask, past_key_values)
        return BaseModelOutput(last_hidden_state=self.output_layer(x, time))  # pyright: ignore[reportArgumentType]


class DiTForMaskedLM(PreTrainedModel):
    """The network of MDLM and BD3LM.

    Args:
        config: Made by `mdlm_config` or `bd3lm_config`.
    """

    config_class = PreTrainedConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (as the library declares it)
    # Buffers in the published files: rotary frequencies, which are computed here, and bounds of the noise in training.
    _keys_to_ignore_on_load_unexpected = [r"^backbone\.rotary_emb\.inv_freq$", r"^sampling_eps_m(in|ax)$"]  # noqa: RUF012

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.backbone = Body(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.backbone.vocab_embed

    def get_output_embeddings(self) -> nn.Module:
        """Returns the output projection (language-model head)."""
        return self.backbone.output_layer.linear

    def forward(self, input_ids: Int[Tensor, "batch width"], **kwargs: Any) -> MaskedLMOutput:
        """Returns the logits; for the other arguments see `Body.forward`."""
        state = self.backbone(input_ids, **kwargs).last_hidden_state
        return MaskedLMOutput(logits=self.get_output_embeddings()(state))
