"""VOC 2007 with its 20 classes as labels of whole images; see README.md and `__main__.py`."""
