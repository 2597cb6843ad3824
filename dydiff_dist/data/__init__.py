"""Data: simulator, converters, shards with their manifest, and the exact stream of batches."""
