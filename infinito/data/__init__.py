"""Text to tokens to sequences: sources, tokenizers, the token cache and the order of training."""
