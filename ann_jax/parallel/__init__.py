"""Devices and processes: the mesh, how arrays are sharded on it, and programs compiled for it."""
