"""The config: its schema, strict YAML, and the explanation of what is wrong with one. No torch."""
