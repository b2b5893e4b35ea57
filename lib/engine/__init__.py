"""Long work: launching processes, checkpoints, progress, papermill batches."""
