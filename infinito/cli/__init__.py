"""One small file a command: arguments, config, one call, print."""
