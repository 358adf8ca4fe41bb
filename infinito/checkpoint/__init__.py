"""Checkpoints: the file format, its verification, and the directory of a run."""
