"""Results of other programs, each with its generator (see tests/README.md)."""
