"""Training as functions on arrays: losses, optimizers, state and step."""
