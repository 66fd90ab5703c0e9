"""Published loops on an exact oracle, beside the law that they claim; for docs/comparison.md.

    python -m benchmarks.peers llada=CLONE dream=CLONE dllm=CLONE …
    python -m benchmarks.peers --only costs llada=CLONE …    # the costs again, on a quiet machine; the laws stay
    python -m benchmarks.peers render                        # the page's tables again, from the saved figures

A clone is a folder that you have cloned: its loop is imported from there, with a model that looks up the exact
conditionals of a small table. **That runs code of the clone.** What a loop imports besides and does not need for this
(checkpoints, caches, logging) is replaced by empty modules, so that nothing has to be installed but `transformers`, and
for diffusers what it requires. None of that code is in this package.

For each loop: how far the law of its samples is from the law that it claims (total variation), alone and in a batch,
with what a right loop would show for so few samples; where the two differ, how far it is from the law of what its code
does, found by enumerating all draws; and the processor's time for the same rule here over the loop's. Figures go to
docs/results/peers.json.
"""
