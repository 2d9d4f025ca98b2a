"""The exact kernel of a language model on real text, and what Eq 9 makes of it."""

import numpy as np

import lensllm_jax as lens
from lensllm_jax.data.encoding import encode_causal

print(lens.list_zoo(), lens.list_tasks())
candidate = lens.load_candidate("zoo/gpt2-xs")
task = lens.load_task("pydoc", max_bytes=48)
batch = encode_causal(task.train[:4], candidate.tokenizer).batch(np.arange(4))

print(lens.estimate_ntk_cost(candidate, batch["input_ids"].shape, timed=False).bytes, "bytes")
kernel = lens.candidate_ntk(candidate, batch)
print(kernel.theta)

steps = np.array([0.0, 10.0, 100.0])
print(lens.ntk_loss(kernel.theta, kernel.residual, learning_rate=1e-3 / 4, steps=steps))
