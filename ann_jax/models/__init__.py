"""The network: backbone, attention blocks, assembly."""
