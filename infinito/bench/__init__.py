"""Measurements of this machine: what ``infinito bench`` prints, always beside a floor."""
