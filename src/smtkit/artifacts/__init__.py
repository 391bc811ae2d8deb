"""What lies on disk: manifests, shards, weights and training state."""
