"""Training as functions on arrays: losses, optimizers, the state and the step."""
