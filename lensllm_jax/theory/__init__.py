"""The theory, computable: Hessian forms, KL, the PAC-Bayes bound, its corollary, and phases."""
