"""Every masked language model of the Transformers library: what it does in a batch, for docs/language.md.

    python -m benchmarks.masked_lms [KIND ...]    # try all, or some, on tiny random networks; then the page
    python -m benchmarks.masked_lms render        # the page's table, from the saved figures

Each class of the library's mapping is made tiny from its configuration, and asked to answer prompts of mixed lengths
alone, together, and alone again, by argmax and drawn. Figures go to docs/results/masked_lms.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import unmask
from unmask.errors import AdapterError
from unmask.language import Completion, LanguageModel
from unmask.models.pretrained.hf import quiet
from unmask.models.pretrained.sharing import sharing_of

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "masked_lms.json"
PAGE = ROOT / "docs" / "language.md"
KINDS = {str(kind): str(name) for kind, name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.items()}
"""The classes of the library's mapping, by `model_type`."""
VOCAB, MASK, POSITIONS = 60, 4, 128
NEW = 6
"""Tokens of an answer."""
LENGTHS = (100, 17, 40, 3, 6, 17)
"""Tokens of the prompts: beyond every chunk, block and window of these networks, the longest first; two are equal."""

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "max_position_embeddings": POSITIONS,
    **dict.fromkeys(("hidden_size", "d_model", "emb_dim", "dim", "embedding_size", "pooler_hidden_size"), 32),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "true_hidden_size", "prediction_head_size"), 32),
    "intra_bottleneck_size": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_self_attends_per_block", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads"), 4),
    "decoder_attention_heads": 4,
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_inner", "feed_forward_size"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("head_dim", "d_head", "attention_head_size", "entity_emb_size", "num_latents"), 8),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "local_attention", "sliding_window"), 8),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 70),
    **dict.fromkeys(("d_latents", "embedding_rank"), 16),
    **dict.fromkeys(("prompt_length", "prompt_mid_dim", "entity_vocab_size"), 8),
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    "unk_token_id": 3,
    "mask_token_id": MASK,
}
"""Sizes and token ids, by the names that some configuration has."""
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_OWN: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "esm": {"vocab_size": VOCAB, "position_embedding_type": "absolute", "pad_token_id": 1, "mask_token_id": MASK},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1]},
    "longformer": {"attention_window": 8},
    "neomme": {
        "rope_parameters": {
            "sliding_attention": {**_ROTARY, "partial_rotary_factor": 1.0},
            "full_attention": {**_ROTARY, "partial_rotary_factor": 0.5},
        },
        "per_layer_config": None,
    },
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 5},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "is_decoder": False,
    },
    "xmod": {"default_language": "en_XX"},
}
_INSIDE = {"modernvbert": "modernbert", "ultravbert": "ultrabert"}
"""Configurations that hold one of a text model."""


def tiny_config(kind: str, **over: Any) -> Any:
    """Returns a configuration of a tiny model; what is given comes before the usual sizes."""
    fields = AutoConfig.for_model(kind).to_dict()
    if kind in _INSIDE:
        text = tiny_config(_INSIDE[kind]).to_dict()
        vision = {**_VISION, "image_size": 8, "patch_size": 4}
        return AutoConfig.for_model(kind, text_config=text, vision_config=vision, image_token_id=VOCAB - 1, **over)
    given = {name: value for name, value in _SMALL.items() if name in fields}
    if fields.get("layer_types"):
        given["layer_types"] = ["full_attention", "sliding_attention"]
    return AutoConfig.for_model(kind, **{**given, **_OWN.get(kind, {}), **over})


def tiny(kind: str, seed: int = 1, **over: Any) -> PreTrainedModel:
    """Makes a tiny model with random weights, large enough that its logits differ and its attention looks around."""
    config = tiny_config(kind, **over)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(5) if bool(weight.any()) else weight.normal_(0, 0.1)
    return model


@dataclass(frozen=True)
class Tried:
    """What became of one class.

    Attributes:
        kind: Its `model_type`.
        name: The class.
        outcome: `"any lengths"`, `"equal lengths"` or `"one at a time"`: what is evaluated together; or `"refused"`.
        why: Why it is refused.
        random: Whether it draws random numbers while it is evaluated.
        changes: Whether it changes by being evaluated.
        positions: How many positions its configuration says it has.
        longest: The most tokens of a sequence.
        answers: How many answers were compared.
        differ: How many of them had other tokens in a batch, or when they were asked for again.
        gap: The largest difference of a log-probability, in nats.
    """

    kind: str
    name: str
    outcome: str
    why: str = ""
    random: bool = False
    changes: bool = False
    positions: int | None = None
    longest: int | None = None
    answers: int = 0
    differ: int = 0
    gap: float = 0.0


def try_kind(kind: str, **over: Any) -> Tried:
    """Answers prompts of mixed lengths alone, in a batch, and alone again, and compares.

    Raises:
        AssertionError: If a sequence as long as the model says it takes cannot be evaluated, or a longer one is not
            refused.
    """
    model, name = tiny(kind, **over), KINDS[kind]
    try:
        language = LanguageModel.of(model, mask_id=MASK, end_ids=[])
    except AdapterError as error:
        return Tried(kind, name, "refused", str(error))
    longest = language.max_length
    room = min(max(LENGTHS), (longest or POSITIONS) - NEW)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(5, VOCAB - 1, (min(length, room),), generator=generator).tolist() for length in LENGTHS]
    answers = differ = 0
    gap = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for temperature in (0.0, 1.0):

            def answer(*asked: list[int], temperature: float = temperature) -> list[Completion]:
                streams = [prompts.index(prompt) for prompt in asked]
                settings: dict[str, Any] = {"rule": "topk:k=2", "max_new_tokens": NEW, "temperature": temperature}
                return language.generate(asked, streams=streams, **settings)

            try:
                alone = [answer(prompt)[0] for prompt in prompts]
            except ValueError as error:
                return Tried(kind, name, "refused", str(error))
            for others in (answer(*prompts), [answer(prompt)[0] for prompt in reversed(prompts)][::-1]):
                for one, other in zip(alone, others, strict=True):
                    answers += 1
                    differ += (one.tokens, one.nfe) != (other.tokens, other.nfe)
                    gap = max(gap, *(abs(a - b) for a, b in zip(one.log_probs, other.log_probs, strict=True)))
        if longest is not None:
            check_limit(language, longest)
    pad = language.network.pad_id
    assert isinstance(pad, int)
    known = sharing_of(model, pad)
    outcome = {"any": "any lengths", "equal": "equal lengths", "one": "one at a time"}[known.together]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Tried(kind, name, outcome, "", known.random, known.changes, positions, longest, answers, differ, gap)


def check_limit(language: LanguageModel, longest: int) -> None:
    """Evaluates a sequence as long as a model says it takes, and sees that one that is longer is refused.

    Raises:
        AssertionError: If the first fails, or the second does not.
    """
    rule = unmask.Rule(unmask.Entropy(), unmask.One())
    x = [[5] * (longest - 1) + [MASK]]
    assert unmask.sample(language, x, rule, seed=0).nfe.tolist() == [1], f"not even {longest} tokens"
    refusal = ""
    try:
        unmask.sample(language, [[5, *x[0]]], rule, seed=0)
    except ValueError as error:
        refusal = str(error)
    assert f"{longest + 1} tokens, more than the {longest} that the model takes" in refusal, refusal or "not refused"


def table(tried: list[Tried]) -> str:
    """Returns the page's table: which classes are evaluated how."""
    meanings = {
        "any lengths": "together, whatever their lengths",
        "equal lengths": "those of equal lengths together",
        "one at a time": "one at a time",
        "refused": "refused",
    }
    lines = ["| sequences are evaluated | classes | which |", "|---|---|---|"]
    for outcome, meaning in meanings.items():
        mine = [one for one in tried if one.outcome == outcome]
        if not mine:
            continue
        shown = ", ".join(f"`{one.name}`" + _marks(one) for one in mine)
        lines.append(f"| {meaning} | {len(mine)} | {shown} |")
    answers, differ = sum(one.answers for one in tried), sum(one.differ for one in tried)
    gap = max(one.gap for one in tried)
    lines.append(
        f"\nOf {answers} answers, {differ} were others in a batch of mixed lengths, or when they were asked for again;"
        f" no log-probability differed by more than {gap:.0e} nats."
    )
    return "\n".join(lines)


def _marks(one: Tried) -> str:
    if one.outcome != "refused":
        return ""
    return " (sequence-to-sequence)" if "sequence-to-sequence" in one.why else " (its attention is a CUDA kernel)"


def main() -> None:
    """Tries the kinds that are named, or all; the page is written when all were tried."""
    torch.set_num_threads(1)
    names = sys.argv[1:]
    if names == ["render"]:
        tried = [Tried(**one) for one in json.loads(RESULTS.read_text(encoding="utf-8"))["classes"]]
    else:
        tried = []
        for kind in names or KINDS:
            tried.append(try_kind(kind))
            print(json.dumps(asdict(tried[-1])), flush=True)
        if names:
            return
        import transformers

        found = {"transformers": transformers.__version__, "classes": [asdict(one) for one in tried]}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, {"masked-lms": table(tried)})


if __name__ == "__main__":
    main()
