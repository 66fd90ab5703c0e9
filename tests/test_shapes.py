"""The shapes and types in the signatures are those of the values: checked at every call, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook("unmask", "beartype.beartype"):
    import torch
    import unmask
    from unmask import oracles
    from unmask.rules.named import FAMILIES, named_rule
    from unmask.dependence.audit import audited_sample
    from unmask.dependence.calibrate import measure_profile, oracle_profile
    from unmask.likelihood.curve import measure_curve, optimal_sizes, oracle_curve
    from unmask.evaluation.runner import answer
    from unmask.draws.kernels import numba_rows

torch.set_num_threads(1)
hmm = oracles.random_hmm(2, 3, 0)
profile = oracle_profile(hmm, 4, contexts=20)
numbers = {"epsilon": 0.3, "gamma": 0.3, "k": 2, "threshold": 0.6, "steps": 3, "factor": 0.9}
values = {**numbers, "sizes": "2+1", "profile": profile}
models = [hmm, oracles.random_markov(3, 0), oracles.PerturbedDenoiser(hmm, 0.2)]
for name, family in FAMILIES.items():
    needed = [key for key, setting in family.settings.items() if setting.default is None]
    named = named_rule(name, **{key: values.get(key, family.settings[key].example) for key in needed})
    for model in models:
        x, settings = [[3, 3, 0, 3], [3, 1]], {"blocks": 3, "trace": True, "candidates": 2, "temperature": 0.5}
        run = unmask.sample(model, x, named.rule, seed=0, **settings)
        run.trace_json(0), run.render(1), run.bound, run.sequences
        if not isinstance(model, oracles.PerturbedDenoiser) and not named.rule.no_law:
            law = oracles.exact_law(model, named.rule, torch.tensor([3, 3, 0, 3]))
            law.pvalue(torch.zeros(9, 4, dtype=torch.int64))
    sampler = unmask.Sampler(models[0], named.rule)
    answer(sampler, torch.full((3, 4), 3), seed=0, temperature=1.0, batch_size=2)
grid = oracles.Sudoku4Denoiser()
oracles.exact_law(grid, unmask.Rule(unmask.Entropy(), unmask.EntropyBound(torch.tensor([0.5]))), torch.full((16,), 4))
profile.mean, profile.error, profile.pooled("level").prices(quantile=0.5), profile + profile
measure_profile(hmm, [[0, 1, 2], [2, 1]], profile, seed=0, maskable=None)
unmask.nelbo(models[0], [[0, 1, 2], [2, 1]], seed=0).mean()
optimal_sizes(measure_curve(hmm, [[0, 1, 2], [2, 1]], seed=0), 2), oracle_curve(hmm, 3)
wide = unmask.FullDenoiser(lambda x: torch.zeros(*x.shape, 300), 300, 299)
unmask.sample(wide, [[299, 0, 299]], unmask.Rule(unmask.Entropy(), unmask.One()), seed=0)  # by compiled kernels
rule = unmask.Rule(unmask.Entropy(), unmask.DependenceBound(0.3, profile))
result, audit = audited_sample(hmm, [[3, 3, 3, 3], [3, 3, 0]], rule, tests=1.0, seed=0)
audit.movement(), audit.excess()
try:
    unmask.rules.entropy_bound(torch.zeros(3), 0.1)
except TypeCheckError:
    print("checked")
"""


def test_signatures_hold_wherever_the_library_goes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "checked"
