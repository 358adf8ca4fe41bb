"""Several processes that train one model: launched, joined, sharing each batch."""
