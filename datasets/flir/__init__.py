"""FLIR ADAS v1 with boxes; see README.md and `__main__.py`."""
