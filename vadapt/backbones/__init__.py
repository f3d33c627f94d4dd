"""Backbones: plain feature extractors that know nothing of adaptation."""
