"""Language models as Flax modules: one decoder, config-driven, and one file a family."""
