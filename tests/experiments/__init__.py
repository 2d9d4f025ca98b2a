"""Tests of the binaries, run as a user runs them."""
