"""Runs: what binaries and notebooks call, in a folder that resumes."""
