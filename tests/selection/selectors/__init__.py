"""Tests of selectors, a file each."""
