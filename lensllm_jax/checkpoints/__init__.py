"""Hugging Face folders in, candidates out, and back; and the candidates that come bundled."""
