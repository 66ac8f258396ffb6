"""Stage 3: outcomes + profiles to policy."""
