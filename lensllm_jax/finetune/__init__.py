"""Fine-tuning a candidate on a subset of a task, and what it cost."""
