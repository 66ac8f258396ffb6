"""The vocabulary and the few formulas that everything shares.

Frozen dataclasses and enums on the standard library alone; no input or output.
Every other package may import this one; this one imports nothing of llmtier.
"""
