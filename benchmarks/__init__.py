"""Measured speed and quality, off by default; LOG.md keeps what was found."""
