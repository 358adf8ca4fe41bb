"""``infinito optimise``: each optimisation measured on a model, here, and what helps kept."""
