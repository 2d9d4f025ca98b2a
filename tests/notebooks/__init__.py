"""What is committed of the notebooks."""
