"""Builders for TensorFlow Datasets, one folder a data set; run from the root of the repository."""
