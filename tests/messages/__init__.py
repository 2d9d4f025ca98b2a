"""What a user reads."""
