"""Device, precision, random streams, signals, memory: each choice with its reason."""
