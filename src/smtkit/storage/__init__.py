"""Artifacts on disk or at a URI: manifest, commit, locks, shards and weights."""
