"""Stage 1: model + calibration set to checkpoint + manifest."""
