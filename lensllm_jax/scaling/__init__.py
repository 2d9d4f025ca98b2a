"""Scaling laws of fine-tuning and their fits; kernel quantities arrive as plain numbers."""
