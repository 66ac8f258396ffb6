"""Prompt to features to P(correct | prompt, tier); one file per scorer."""
