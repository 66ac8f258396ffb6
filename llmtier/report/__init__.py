"""Renders artifacts for people."""
