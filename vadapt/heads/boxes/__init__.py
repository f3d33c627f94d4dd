"""Dense detection heads: every cell of every level scores classes and places boxes."""
