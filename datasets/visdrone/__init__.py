"""VisDrone2019-DET with boxes; see README.md and `__main__.py`."""
