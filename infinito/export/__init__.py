"""Trained models in other forms: smaller, or for other programs."""
