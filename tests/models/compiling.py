"""How long XLA takes to compile a model's gradient."""

import random
import time

import jax


def least_compile_seconds(module, *inputs, times=3):
    """Least of so many times that XLA needs for the gradient of the sum of the outputs.

    Seconds of the processor, all threads together: other work on the machine does not count.
    """
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    seconds = []
    for _ in range(times):
        # another constant each time, so that no cache answers
        factor = random.uniform(1.5, 2.5)

        def loss(params, factor=factor):
            return module.apply(params, *inputs).sum() * factor

        lowered = jax.jit(jax.grad(loss)).lower(params)
        start = time.process_time()
        lowered.compile()
        seconds.append(time.process_time() - start)
    return min(seconds)
