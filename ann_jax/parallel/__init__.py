"""Devices and processes: the mesh, how arrays lie on it, and programs compiled for it."""
