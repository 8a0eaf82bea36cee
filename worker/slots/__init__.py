"""Several jobs in one process, their steps batched."""
