"""Tests of the structured kernel, a file per module."""
