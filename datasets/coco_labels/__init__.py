"""COCO 2014 with the 80 classes as labels of whole images; see README.md and `__main__.py`."""
