"""What networks are made of: layers, norms, attention, blocks; they know no network."""
