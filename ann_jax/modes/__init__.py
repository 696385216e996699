"""What the command does: each mode takes a config and a workdir."""
