"""gateway.toml: the model and its loader."""
