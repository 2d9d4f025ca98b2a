"""The binaries: each module runs as ``python -m experiments.<name> --help``."""
