"""What a compiled function holds while it runs, by XLA's own account."""

import jax


def temporary_bytes(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
