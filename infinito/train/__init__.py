"""The training loop, the state it moves, and how a run starts, stops and goes on."""
