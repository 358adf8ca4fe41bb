"""Search over configs: a typed space, the methods that walk it, and the study that drives them."""
