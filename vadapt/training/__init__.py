"""Training: one loop and one step for every task; checkpoints and logs."""
