"""One architecture each: how its published checkpoints map onto our models."""
