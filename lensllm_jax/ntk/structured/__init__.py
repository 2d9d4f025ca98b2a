r"""The structured kernel: exact, with one layer's activations in memory.

::

    f(params, x)                  any JAX function, examples independent
      |  traced for one example
    program (a jaxpr)
      |  stages                   partitioned at the steps of its loops over layers
    schedule of stages
      |  chunks                   the examples of a call, a few per device at a time
    forward sweep                 keeps the values between stages
      |  taps                     in each use of a parameter: what enters, what perturbs
    backward sweep                recomputes one stage at a time, last one first
      |  gradients                terms of one parameter, brought to one layout
    groups of terms
      |  contractions, blas       the cheaper of two exact products
    Theta                         one block per parameter; their sum is the kernel
"""
