"""Tests of the fine-tuning room."""
