"""Where the heads of a model look: attention patterns, their plots and the report."""
