"""The modes of the command: each takes a config and a working directory."""
