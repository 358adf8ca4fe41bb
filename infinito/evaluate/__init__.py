"""Evaluation: perplexity and its conventions, documents, causality, and the report of them."""
