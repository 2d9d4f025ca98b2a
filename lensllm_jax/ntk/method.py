"""Method: which algorithm computes a kernel, and how its outputs are reduced.

One quantity, several algorithms: they agree to rounding and differ in time and memory.
"""

import enum


class NtkMethod(enum.StrEnum):
    """Interchangeable algorithms for one kernel of n x m examples, k outputs, p parameters."""

    # Ours: each parameter's Gram from what enters it and the cotangents of what leaves it; memory
    # of a block's activations, several times faster on transformers. See ``structured``.
    STRUCTURED = "structured"
    # Both whole Jacobians, then one product: memory (n + m) k p, the oracle of the others.
    JACOBIAN_CONTRACTION = "jacobian_contraction"
    # One forward-mode pass through one reverse-mode pass per pair of examples: n m k passes,
    # little memory; several times slower on transformers.
    NTK_VECTOR_PRODUCTS = "ntk_vector_products"


class OutputReduction(enum.StrEnum):
    """What is kept of the k x k outputs of a pair of examples."""

    NONE = "none"  # all of Θ_ab
    SUM = "sum"  # the trace, Σ_a Θ_aa
    MEAN = "mean"  # the trace divided by k
