"""The user's own data, however it is laid out: found, understood, checked and converted."""
