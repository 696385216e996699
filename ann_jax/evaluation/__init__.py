"""Scores of a network on a split, with pictures and tables of them."""
