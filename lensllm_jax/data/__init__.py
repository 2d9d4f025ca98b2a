"""Downstream tasks as text, their nested subsets, and the token arrays that a model trains on."""
