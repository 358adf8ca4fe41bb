"""The transformer: layers, loss, key/value cache, and what they cost."""
