"""Builders of golden cases, one file a topic; see tests/parity.py."""
