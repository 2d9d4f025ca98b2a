"""The tests; ``tests.oracles`` and ``tests.tolerances`` are imported by name."""
