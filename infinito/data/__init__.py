"""Text to tokens to sequences: sources, the token cache and the order of training."""
