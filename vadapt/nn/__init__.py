"""Parts of networks: layers, norms, attention, blocks, and the loop over them."""
