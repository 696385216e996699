"""Scores of a network on a split, as tables and pictures."""
