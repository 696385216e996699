"""Image files of every kind become arrays."""
