"""Tests of runs, in folders that are killed and resumed."""
