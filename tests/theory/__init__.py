"""Tests of the theory room, against dense linear algebra in float64."""
