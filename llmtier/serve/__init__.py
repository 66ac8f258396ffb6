"""Stage 4: policy + profiles + engines to answers, metrics and a traffic log."""
