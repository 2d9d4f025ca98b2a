"""The table of errors, a module a room: each message, and what brings it about."""
