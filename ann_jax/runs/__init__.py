"""What a run keeps in its folder: checkpoints, records, a lock and a log."""
