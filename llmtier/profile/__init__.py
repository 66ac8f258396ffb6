"""Stage 2: checkpoint to measured latency, accuracy and cost."""
