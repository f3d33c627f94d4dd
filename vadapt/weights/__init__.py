"""Weights: import from official files, export of what was trained."""
