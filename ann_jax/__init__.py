"""Asymmetric Non-local Neural Networks for semantic segmentation (ICCV 2019) in JAX."""

__version__ = '0.1.0'
