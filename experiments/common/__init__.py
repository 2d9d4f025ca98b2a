"""What the binaries share: flags, the run folder, progress, tables on a terminal."""
