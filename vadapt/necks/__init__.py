"""Necks: what turns the maps of a backbone into the maps that a head wants."""
