"""Recipe and sources to a calibration set: duplicates out, held-out split, stratified choice, manifest."""
