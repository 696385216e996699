"""Datasets, augmentation and batches. Nothing here imports jax: worker processes stay off the accelerator."""
