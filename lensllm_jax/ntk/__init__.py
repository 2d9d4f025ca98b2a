"""The empirical neural tangent kernel: its matrix and what it predicts."""
