"""Temporary bytes of a compiled function, by XLA's account."""

import jax


def temporary_bytes(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
