"""TinyPerson with boxes; see README.md and `__main__.py`."""
