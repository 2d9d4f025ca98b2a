"""Numbers made elsewhere by other programs, each beside its generator."""
