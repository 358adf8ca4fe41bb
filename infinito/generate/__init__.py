"""Text from a trained model: logits processors, constraints, and the decoding engine."""
