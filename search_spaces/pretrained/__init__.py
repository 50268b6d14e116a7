"""Published models: where the reference is, and how its weights are called here; a file per model."""
