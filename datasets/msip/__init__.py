"""MSIP: 178,756 infrared images from eight public data sets; see README.md and `__main__.py`."""
