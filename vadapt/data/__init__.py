"""Data: sources, transforms, deterministic streams, and the embedded scenes."""
