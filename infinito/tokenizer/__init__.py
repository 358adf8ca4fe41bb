"""Text to token ids and back: byte pairs, words or bytes, each stored as one JSON document."""
