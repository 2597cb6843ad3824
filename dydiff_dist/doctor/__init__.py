"""Whether a machine, and several together, are fit for training: findings, each with what to do."""
