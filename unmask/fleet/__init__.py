"""Long jobs in shards: on one machine, or on many with Ray."""
