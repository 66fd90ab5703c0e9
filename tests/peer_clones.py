"""Stand-ins for clones of the peers: files with the names that theirs have, and loops that are right, written here."""

from __future__ import annotations

RIGHT = '''
import torch

def right(ask, x, mask_id, gamma=0.0):
    """Writes the masks of lowest entropy that fit sum H - max H <= gamma, at least one."""
    x = x.clone()
    while bool((x == mask_id).any()):
        p = ask(x).softmax(-1)
        drawn = p.flatten(0, 1).multinomial(1).view_as(x)
        h, order = torch.special.entr(p).sum(-1).masked_fill(x != mask_id, torch.inf).sort(-1)
        fits = h.cumsum(-1) - h.cummax(-1).values <= gamma
        fits[:, 0] = True
        fits &= h.isfinite()
        x = torch.where(torch.zeros_like(fits).scatter(1, order, fits), drawn, x)
    return x

def behind(prompt, length, mask_id):
    return torch.cat([prompt, torch.full((len(prompt), length), mask_id)], 1)

def shifted(logits):
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)
'''

FAST_DLLM = """
from model.modeling_llada import LLaDAModelLM

def generate(model, prompt, steps, gen_length, block_length, temperature, mask_id, threshold):
    return right(lambda x: model(x).logits, behind(prompt, gen_length, mask_id), mask_id), steps
"""

DREAM = """
class DreamGenerationConfig:
    def __init__(self, **options):
        self.__dict__.update(options)

class DreamGenerationMixin:
    def diffusion_generate(self, inputs, generation_config):
        told = generation_config
        x = behind(inputs, told.max_length - inputs.shape[1], told.mask_token_id)
        return right(lambda x: shifted(self(x, "full", None).logits), x, told.mask_token_id)
"""

DLLM = """
from dataclasses import dataclass

@dataclass
class MDLMSamplerConfig:
    temperature: float
    max_new_tokens: int
    block_size: int

@dataclass
class MDLMSampler:
    model: object
    tokenizer: object

    def sample(self, inputs, config, **options):
        mask_id = self.tokenizer.mask_token_id
        x = behind(torch.stack(inputs), config.max_new_tokens, mask_id)
        return right(lambda x: self.model(x).logits, x, mask_id)
"""

DLLM_DREAM = """
from dataclasses import dataclass

@dataclass
class DreamSamplerConfig:
    max_new_tokens: int
    steps: int
    alg: str
    right_shift_logits: bool

@dataclass
class DreamSampler:
    model: object
    tokenizer: object

    def sample(self, inputs, config):
        mask_id = self.tokenizer.mask_token_id
        x = behind(torch.stack(inputs), config.max_new_tokens, mask_id)
        return right(lambda x: shifted(self.model(x).logits), x, mask_id)
"""

D2CACHE = """
from types import SimpleNamespace
from src.utils import is_adapted_from_ar

def vanilla_generate(model, prompt, gen_length, block_length, temperature, mask_token_id, **options):
    x = behind(prompt, gen_length, mask_token_id)
    done = right(lambda x: model(x).logits, x, mask_token_id)
    return [SimpleNamespace(generated_tokens=done[:, prompt.shape[1]:])]
"""

RND1 = """
def diffusion_sample(model, seq_len, mask_token_id, bos_token_id, **options):
    x = behind(torch.full((1, 1), bos_token_id), seq_len - 1, mask_token_id)
    return right(lambda x: shifted(model(x).logits), x, mask_token_id)
"""

WINO = '''
def decoding_wino(model, prompt, gen_length, block_length, temperature, mask_id, threshold, threshold_back):
    """Draws every position again, given the rest: that leaves the law alone if the shadows are right."""
    def ask(x):
        return model(behind(x, block_length, mask_id), attention_mask=None, position_ids=None).logits
    x = right(lambda x: ask(x)[:, :gen_length], behind(prompt, gen_length, mask_id), mask_id)
    for place in range(gen_length):
        x[0, place] = ask(x)[0, gen_length + place].softmax(-1).multinomial(1)
    return x, 0
'''

DIFFUSERS = """
from types import SimpleNamespace

class BlockRefinementScheduler:
    pass

class LLaDA2Pipeline:
    def __init__(self, model, scheduler):
        self.model = model

    def set_progress_bar_config(self, disable):
        pass

    def __call__(self, input_ids, mask_token_id, gen_length, **options):
        x = behind(input_ids, gen_length, mask_token_id)
        return SimpleNamespace(sequences=right(lambda x: self.model(x).logits, x, mask_token_id))
"""

UNI_D2 = """
class EBSampler:
    def __init__(self, config, gamma):
        self.gamma = gamma

    def generate(self, model, num_samples, num_steps, eps, inject_bos):
        x = model.prior_sample(num_samples, model.num_tokens)
        return right(lambda x: model.forward(x, None), x, model.mask_id, self.gamma)
"""

INFO_GAIN = """
from src.generators.base import add_gumbel_noise

def generate_with_eb_sampler(model, prompt, gamma, gen_length, temperature, mask_id):
    return right(lambda x: model(x).logits, behind(prompt, gen_length, mask_id), mask_id, gamma)
"""

NOISE = "class LogLinearNoise:\n    pass\n"

MDLM = '''
import hydra.utils
import lightning as L
import torchmetrics
import utils

class NLL(torchmetrics.aggregation.MeanMetric):
    pass

class Diffusion(L.LightningModule):
    def __init__(self):
        raise RuntimeError("it would build a network")

    def _sample(self, num_steps):
        """Ancestral sampling on a linear grid."""
        x = torch.full((self.config.loader.eval_batch_size, self.config.model.length), self.mask_index)
        for step in range(num_steps):
            drawn = self.backbone(x, None).softmax(-1).flatten(0, 1).multinomial(1).view_as(x)
            x = torch.where((x == self.mask_index) & (torch.rand(x.shape) < 1 / (num_steps - step)), drawn, x)
        return x
'''

BD3LMS = """
import lightning as L
import metrics
from numpy import array as tqdm

class Diffusion(L.LightningModule):
    def _semi_ar_sampler(self, n_samples, num_steps, num_strides, seqlen):
        assert self.config.sampling.first_hitting
        x = behind(torch.full((n_samples, 1), self.tokenizer.bos_token_id), seqlen - 1, self.mask_index)
        return right(lambda x: self.backbone(x, None, sample_mode=True), x, self.mask_index), num_steps
"""

CLONES = {
    "fast-dllm": {"llada/generate.py": FAST_DLLM},
    "dream": {"dllm/pipelines/dream/models/generation_utils.py": DREAM},
    "dllm": {
        "dllm/core/samplers/mdlm.py": DLLM,
        "dllm/pipelines/dream/sampler.py": DLLM_DREAM,
    },
    "d2cache": {"src/utils/common.py": "", "src/generation/vanilla.py": D2CACHE},
    "rnd1": {"rnd/sampling.py": RND1},
    "wino": {"LLaDA/decoding.py": WINO},
    "diffusers": {
        "src/diffusers/__init__.py": DIFFUSERS,
        "src/diffusers/schedulers/scheduling_block_refinement.py": "",
    },
    "uni-d2": {"src/discrete_diffusion/sampling/eb_sampler.py": UNI_D2},
    "info-gain": {
        "src/generators/base.py": "def add_gumbel_noise(): ...",
        "src/generators/eb_sampler.py": INFO_GAIN,
    },
    "mdlm": {"noise_schedule.py": NOISE, "diffusion.py": MDLM},
    "bd3lms": {"noise_schedule.py": NOISE, "diffusion.py": BD3LMS},
}
"""The files of each clone; before those with a loop stands what `RIGHT` says."""
