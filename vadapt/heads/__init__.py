"""Heads: what a task puts on top of a backbone; their parameters are `Head` variables."""
