"""One candidate on one task: losses, kernel, features, and the jobs that measure them."""
