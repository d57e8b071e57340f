"""Tasks: their data, their batches, and how an answer is scored. Training is in train."""
