import json
from typing import Any

import pytest
import torch
from layouts import DREAM, MASK, ROUNDING, VOCAB, write, write_text_model
from test_cli import run as command
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import unmask
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.models.pretrained.cache import Cached
from unmask.models.pretrained.counterparts import plain_as
from unmask.models.pretrained.hf import check_attention
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler
from unmask.sampling.state import State

ONE = "topk:k=1"
QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
TOKENS = [token for token in range(VOCAB) if token != MASK]


def model_of(folder, layout: str) -> LanguageModel:
    """A tiny model without a tokenizer; `block-causal` is one in Dream's sizes with blocks of 4."""
    changes = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]} if layout == "block-causal" else {}
    options = {"shift": False, "block_causal": 4} if layout == "block-causal" else {}
    network = unmask.load(write(folder, "llada" if layout == "llada" else "dream", **changes), **options).network
    return LanguageModel(network, VOCAB, MASK, max_length=64)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return {name: model_of(tmp_path_factory.mktemp(name), name) for name in ("llada", "dream", "block-causal")}


class Recorded:
    """A denoiser that keeps what it was asked and what it said."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.vocab_size, self.mask_id = denoiser, denoiser.vocab_size, denoiser.mask_id
        self.seen: list[tuple[Query, torch.Tensor]] = []

    def __call__(self, query):
        logits = self.denoiser(query)
        self.seen.append((query, logits.clone()))
        return logits

    def drifts(self, exact) -> list[float]:
        """The largest difference to the exact logits, of each evaluation."""
        return [float((logits - exact(query))[:, TOKENS].abs().max()) for query, logits in self.seen]


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB - 2, (length,), generator=generator).tolist() for length in lengths]


def run(
    model, cache, refresh=None, *, rule=ONE, lengths=(5, 9, 3), new=12, size: int | None = 4, temperature=1.0
) -> Recorded:
    x = [torch.tensor([*tokens, *[MASK] * new]) for tokens in prompts(*lengths)]
    blocks = Sampler(model, named_rule(rule).rule).start(x, seed=0, blocks=size).block
    recorded = Recorded(Cached(model, cache, len(x), refresh))
    unmask.sample(recorded, x, named_rule(rule).rule, seed=0, blocks=blocks, temperature=temperature)
    return recorded


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_is_exact_when_a_block_opens_and_drifts_in_between(models, layout, cache):
    drifts = run(models[layout], cache).drifts(models[layout])
    assert len(drifts) == 12
    for place, drift in enumerate(drifts):
        assert drift < ROUNDING if place % 4 == 0 else drift > 1e-3


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_refreshing_in_every_evaluation_is_no_cache(models, layout, cache):
    recorded = run(models[layout], cache, 1)
    assert all(torch.equal(logits, models[layout](query)) for query, logits in recorded.seen)
    options = {"rule": "entropy-bound:gamma=2", "max_new_tokens": 12, "block_length": 6, "temperature": 1.0}
    plain = models[layout].generate(prompts(5, 9, 3), **options)
    same = models[layout].generate(prompts(5, 9, 3), cache=cache, cache_refresh=1, **options)
    assert [one.tokens for one in same] == [one.tokens for one in plain]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_refresh_is_exact(models, cache):
    drifts = run(models["llada"], cache, 3).drifts(models["llada"])
    assert [drift < ROUNDING for drift in drifts] == [True, False, False, True] * 3


def reference(network, x, compute, before):
    """The plain way, layer by layer on one sequence: everything is computed, and what was kept is put in its place."""
    body, kept = network.model.model, []
    state = body.embed_tokens(x)
    cos, sin = body.rotary_emb(state, position_ids=torch.arange(x.shape[1]).unsqueeze(0))
    for index, layer in enumerate(body.layers):
        part, normed = layer.self_attn, layer.input_layernorm(state)
        heads = (*normed.shape[:-1], -1, part.head_dim)
        query, key, value = (f(normed).view(heads).transpose(1, 2) for f in (part.q_proj, part.k_proj, part.v_proj))
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if before is not None:
            at = compute[None, None, :, None]
            key, value = (torch.where(at, new, old) for new, old in zip((key, value), before[index], strict=True))
        kept.append((key, value))
        key, value = (kind.repeat_interleave(part.num_key_value_groups, 1) for kind in (key, value))
        mixed = ((query @ key.transpose(2, 3) * part.scaling).softmax(-1) @ value).transpose(1, 2)
        state = state + part.o_proj(mixed.reshape(*normed.shape[:-1], -1))
        state = state + layer.mlp(layer.post_attention_layernorm(state))
    logits = network.model.lm_head(body.norm(state))[0]
    return (torch.cat([logits[:1], logits[:-1]]) if network.shift else logits), kept


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@torch.no_grad()
def test_what_is_kept_is_what_the_last_whole_evaluation_computed(models, layout, cache):
    recorded = run(models[layout], cache, 3, lengths=(5,))
    kept, network = None, models[layout].network
    block = torch.arange(17).sub(5).div(4, rounding_mode="floor")
    for place, (query, logits) in enumerate(recorded.seen):
        number = int(block[query.where[0]][0])
        compute = block >= number if cache == "prefix" else block == number
        if layout == "dream":
            compute[:-1] |= compute[1:].clone()
        if place % 4 in (0, 3):
            expected, kept = reference(network, query.x, compute, None)
        else:
            expected, _ = reference(network, query.x, compute, kept)
        assert (logits - expected[query.where[0]])[:, TOKENS].abs().max() < 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_and_both_ways_to_compute_attention(attention, tmp_path):
    loaded = unmask.load(write(tmp_path, "llada"), dtype=torch.bfloat16, attn_implementation=attention)
    model = LanguageModel(loaded.network, VOCAB, MASK, max_length=64)
    recorded = run(model, "dual", 4)
    assert all(logits.dtype == torch.bfloat16 and logits[:, TOKENS].isfinite().all() for _, logits in recorded.seen)
    assert [drift == 0 for drift in recorded.drifts(model)] == [True, False, False, False] * 3


@pytest.mark.parametrize("rule", [ONE, "entropy-bound:gamma=2", "left-to-right", "all"])
@pytest.mark.parametrize("size", [None, 3, 4])
def test_the_block_causal_cache_is_exact(models, rule, size):
    model = models["block-causal"]
    recorded = run(model, "block-causal", rule=rule, size=size)
    assert max(recorded.drifts(model)) < ROUNDING
    if rule == ONE:
        assert len(recorded.seen) == 12


def test_the_block_causal_cache_is_exact_with_a_shift():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Qwen3ForCausalLM(plain_as(Qwen3Config)({**DREAM, "head_dim": 8})).eval()  # pyright: ignore[reportArgumentType]
        for weight in network.parameters():
            torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.2)
    model = LanguageModel.of(network, mask_id=MASK, end_ids=[], shift=True, block_causal=4)
    for size in (None, 4):
        assert max(run(model, "block-causal", size=size).drifts(model)) < ROUNDING


def test_a_state_that_was_changed_by_hand_is_computed_anew(models):
    model = models["block-causal"]
    x = torch.tensor([[*prompts(8)[0], *[MASK] * 8]])
    cached = Cached(model, "block-causal", 1)
    cached(Query.of(x, MASK))
    x[0, 2] = (x[0, 2] + 1) % 30
    assert (cached(Query.of(x, MASK)) - model(Query.of(x, MASK)))[:, TOKENS].abs().max() < ROUNDING


@pytest.mark.parametrize("shift", [False, True])
def test_the_block_causal_cache_is_exact_whatever_becomes_of_the_tokens(shift, tmp_path):
    """Tokens come, go and change anywhere, sequences leave and come back, and any masks are asked for."""
    folder = write(tmp_path, "dream", **QWEN)
    model = LanguageModel(unmask.load(folder, shift=shift, block_causal=4).network, VOCAB, MASK)
    cached, generator = Cached(model, "block-causal", 3), torch.Generator().manual_seed(1)
    x = torch.randint(0, VOCAB - 2, (5, 14), generator=generator)
    x[:, 5:] = MASK
    computed = 0
    for _ in range(120):
        slots = torch.randperm(5, generator=generator)[:2]
        for slot in slots.tolist():
            # Mostly one more token where the first mask is; now and then another token, or none, anywhere.
            place = int((x[slot] == MASK).int().argmax())
            if torch.rand((), generator=generator) < 0.3:
                place = int(torch.randint(0, 14, (), generator=generator))
            keep = torch.rand((), generator=generator) < 0.8
            x[slot, place] = torch.randint(0, 30, (), generator=generator) if keep else MASK
            if not (x[slot] == MASK).any():
                x[slot, 5:] = MASK
        where = x[slots] == MASK
        some = where & (torch.rand(where.shape, generator=generator) < 0.5)
        where = torch.where(some.any(-1, keepdim=True), some, where)
        query = Query(x[slots], where, torch.ones_like(where), slots)
        assert (cached(query) - model(query))[:, TOKENS].abs().max() < ROUNDING
        computed += int((cached.edge_at >= 0).any())
    assert computed > 20 if shift else computed == 0


def test_only_what_is_needed_is_computed(models):
    widths: list[int] = []
    for cache, layout, expected in (
        ("prefix", "llada", [17, 12, 12, 12, 17, 8, 8, 8, 17, 4, 4, 4]),
        ("dual", "llada", [17, 4, 4, 4] * 3),
        ("dual", "dream", [17, 5, 5, 5] * 3),
    ):
        widths.clear()
        body = models[layout].network.model.model
        hook = body.layers[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
        run(models[layout], cache, lengths=(5,))
        hook.remove()
        assert widths == expected
    widths.clear()
    body = models["block-causal"].network.model.model
    hook = body.layers[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    run(models["block-causal"], "block-causal", lengths=(8,))
    hook.remove()
    # The prompt and the open block, the open block, and each block once more when the next one opens.
    assert widths == [12, 4, 4, 4, 8, 4, 4, 4, 8, 4, 4, 4]


def test_finished_blocks_are_looked_at_and_not_computed(models, tmp_path):
    """So too with a shift, where a block's first token hangs on the last output of the block before."""
    folder = write(tmp_path, "dream", **QWEN)
    shifted = LanguageModel(unmask.load(folder, shift=True, block_causal=4).network, VOCAB, MASK)
    widths: list[tuple[int, int]] = []

    def note(_, args, kwargs, output):
        widths.append((kwargs["hidden_states"].shape[1], kwargs["attention_mask"].shape[-1]))

    for model in (models["block-causal"], shifted):
        widths.clear()
        network: Any = model.network
        hook = network.model.model.layers[0].self_attn.register_forward_hook(note, with_kwargs=True)
        model.generate(prompts(8), rule=ONE, max_new_tokens=12)
        hook.remove()
        assert widths == [(12, 12), *[(4, 12)] * 3, (8, 16), *[(4, 16)] * 3, (8, 20), *[(4, 20)] * 3]


CASES = [("llada", "prefix"), ("llada", "dual"), ("dream", "prefix"), ("dream", "dual"), ("block-causal",) * 2]


@pytest.mark.parametrize("rule", ["entropy-bound:gamma=2", "topk:k=1"])
@pytest.mark.parametrize(("layout", "cache"), CASES)
def test_an_answer_does_not_depend_on_its_batch(models, layout, cache, rule):
    model = models[layout]
    # Any token ends an answer with a probability that lets some of them end early.
    model = LanguageModel(model.network, VOCAB, MASK, end_ids=range(30, 36), max_length=64)
    options = {"rule": rule, "max_new_tokens": 12, "block_length": 4, "temperature": 1.0, "end_last": False}
    options |= {"cache": cache, "cache_refresh": None if cache == "block-causal" else 3}
    asked = prompts(5, 9, 3, 8)
    alone = [model.generate([one], seed=1, **options)[0] for one in asked]
    together = model.generate(asked, seed=1, batch_size=4, **options)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.nfe for one in together] == [one.nfe for one in alone]
    assert len({one.nfe for one in alone}) > 1  # some leave the batch before others


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_changes_answers(models, cache):
    options = {"rule": "topk:k=1", "max_new_tokens": 16, "block_length": 8, "temperature": 1.0}
    plain = models["llada"].generate(prompts(5, 9, 3, 8), **options)
    kept = models["llada"].generate(prompts(5, 9, 3, 8), cache=cache, **options)
    assert [one.tokens for one in kept] != [one.tokens for one in plain]
    assert [one.nfe for one in kept] == [one.nfe for one in plain]


def test_answers_with_the_block_causal_cache_are_those_without(models):
    for size in (None, 4, 6):
        options = {"rule": "entropy-bound:gamma=2", "max_new_tokens": 12, "block_length": size, "temperature": 1.0}
        plain = models["block-causal"].generate(prompts(5, 9, 3, 8), cache="none", **options)
        kept = models["block-causal"].generate(prompts(5, 9, 3, 8), cache="block-causal", **options)
        assert [one.tokens for one in kept] == [one.tokens for one in plain]


def seen_by(model, **options) -> list[State]:
    """The states of a run."""
    states: list[State] = []
    model.generate(prompts(5), rule=ONE, max_new_tokens=6, on_step=lambda state, _: states.append(state), **options)
    return states


def test_blocks_of_a_block_causal_model_are_those_of_its_attention(models):
    for options, size in (({}, 4), ({"block_length": 4}, 4), ({"block_length": 2}, 2), ({"block_length": 64}, 64)):
        states = seen_by(models["block-causal"], **options)
        assert states[0].block[0].tolist() == [place // size for place in range(12)]
    assert set(seen_by(models["llada"])[0].block[0].tolist()) == {0}


def test_a_block_causal_model_is_shown_masks_up_to_the_end_of_a_block(models):
    for state in seen_by(models["block-causal"]):
        assert state.x[0, 11] == MASK
        assert not state.pending[0, 11]
        assert state.valid[0, 11]
    (answer,) = models["block-causal"].generate(prompts(5), rule=ONE, max_new_tokens=6)
    assert (len(answer.tokens), answer.nfe) == (6, 6)
    short = LanguageModel(models["block-causal"].network, VOCAB, MASK, max_length=11)
    assert seen_by(short)[0].x.shape[1] == 11
    assert seen_by(models["llada"])[0].x.shape[1] == 11


def test_the_block_causal_cache_is_what_is_used_where_nothing_is_against_it(models, monkeypatch):
    from unmask.language import generation

    used: list[str] = []

    def cached(model, cache, *options):
        used.append(cache)
        return Cached(model, cache, *options)

    monkeypatch.setattr(generation, "Cached", cached)
    options = {"max_new_tokens": 8}
    for settings, expected in (
        ({"rule": ONE}, ["block-causal"]),
        ({"rule": ONE, "cache": "none"}, []),
        ({"rule": ONE, "guidance": 1.0}, []),
        ({"rule": "speculative"}, []),
    ):
        models["block-causal"].generate(prompts(5), **options, **settings)
        assert used == expected
        used.clear()
    models["llada"].generate(prompts(5), rule=ONE, **options)
    assert used == []


@pytest.mark.parametrize(
    ("layout", "settings", "words"),
    [
        ("llada", {"cache": "paged"}, "unknown cache 'paged'; choose one of none, prefix, dual, block-causal"),
        ("llada", {"cache": "dual", "block_length": None}, "cache 'dual' keeps what is outside .*: give block_length"),
        ("llada", {"cache": "dual", "cache_refresh": 0}, "cache_refresh is a whole number of evaluations >= 1, got 0"),
        ("llada", {"cache": "dual", "cache_refresh": True}, "cache_refresh is a whole number"),
        ("llada", {"cache_refresh": 4}, "cache_refresh is for the caches prefix and dual.*cache 'none' is exact"),
        ("llada", {"cache": "block-causal"}, r"for models whose attention is block-causal \(block_causal=..."),
        ("block-causal", {"cache": "prefix"}, "for which cache='block-causal' is exact"),
        ("block-causal", {"cache": "block-causal", "cache_refresh": 2}, "cache 'block-causal' is exact"),
        ("llada", {"cache": "prefix", "guidance": 1.0}, "does not go with guidance"),
        ("llada", {"cache": "prefix", "rule": "speculative"}, "evaluates several states of a sequence"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(models, layout, settings, words):
    options = {"rule": ONE, "max_new_tokens": 8, "block_length": 4, **settings}
    with pytest.raises(ValueError, match=words):
        models[layout].generate(prompts(5), **options)


def test_models_that_cannot_keep_anything_are_refused(models):
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert = LanguageModel.of(BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes)), mask_id=MASK, end_ids=[])
    options = {"rule": ONE, "max_new_tokens": 8, "block_length": 4, "cache": "dual"}
    with pytest.raises(ValueError, match=r"a cache is for LLaDA, Dream, .*; this is a BertForMaskedLM"):
        bert.generate(prompts(5), **options)
    with pytest.raises(ValueError, match="is causal"):
        check_attention(LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes)), "a cache")
    with pytest.raises(ValueError, match="this is a Linear"):
        Cached(LanguageModel(torch.nn.Linear(1, 1), VOCAB, MASK), "dual", 1)
    with pytest.raises(ValueError, match="take the model itself"):
        Cached(models["llada"], "none", 1)


def test_a_cache_is_of_one_state_of_each_sequence(models):
    x = torch.full((2, 8), MASK)
    cached = Cached(models["llada"], "dual", 2)
    query = Query.of(x, MASK)
    with pytest.raises(ValueError, match="one state of each of at most 2 sequences"):
        cached(Query(x, query.where, query.valid, torch.tensor([0, 0])))
    three = Query.of(torch.full((3, 8), MASK), MASK)
    with pytest.raises(ValueError, match="one state of each of at most 2 sequences"):
        cached(three)


def test_the_command_line_has_caches(tmp_path):
    folder = write_text_model(tmp_path / "model")
    shown = ["generate", str(folder), "-p", "12+35=", "--max-new-tokens", "8", "--rule", "topk", "--k", "2", "--json"]
    options = ["--block-length", "4", "--cache", "dual", "--cache-refresh", "2"]
    (one,) = json.loads(command(*shown, *options))
    model = unmask.load(folder)
    again = model.generate(  # pyright: ignore
        "12+35=", rule="topk:k=2", max_new_tokens=8, block_length=4, cache="dual", cache_refresh=2
    )
    assert one["tokens"] == list(again[0].tokens)
    with pytest.raises(ValueError, match="give block_length"):
        command(*shown, "--cache", "prefix")
    with pytest.raises(ValueError, match="unknown cache 'all'"):
        command(*shown, "--cache", "all")
    with pytest.raises(ValueError, match="block_causal does not apply"):
        command(*shown, "--cache", "block-causal", "--block-causal", "4")


@pytest.mark.parametrize("layout", ["llada", "dream", "block-causal"])
def test_a_cache_serves_a_queue_whose_slots_are_refilled(models, layout):
    """Keys on slots: what left is forgotten, lengths grow, and every answer is what the cache gives it alone."""
    from unmask.sampling.queue import stream

    model, cache = models[layout], "block-causal" if layout == "block-causal" else "dual"
    rule = named_rule("entropy-bound:gamma=0.3").rule
    rows = [
        torch.tensor([*tokens, *[MASK] * new]) for tokens, new in zip(prompts(5, 9, 3, 12), (8, 4, 12, 8), strict=True)
    ]
    kept = Cached(model, cache, 2)
    found = dict(stream(Sampler(kept, rule), rows, 2, streams=range(4), blocks=4))
    assert sorted(found) == [0, 1, 2, 3]
    for number, row in enumerate(rows):
        fresh = model if cache == "block-causal" else Cached(model, cache, 1)
        alone = unmask.sample(fresh, [row], rule, streams=[number], blocks=4)
        assert found[number].sequences == alone.sequences
        assert found[number].nfe.tolist() == alone.nfe.tolist()
    assert len(kept.row_of) == 2, "more slots were kept than there are rows"
