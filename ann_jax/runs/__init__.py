"""The files of a run: checkpoints, records, a lock and a log."""
