"""Trained weights: folders of them, runs opened for their weights, and torch's names."""
