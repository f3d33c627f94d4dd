"""Metrics: streaming sums that know no model."""
