"""Tests of one candidate on one task."""
