"""Corpora: documents, images and task rows, their tokenizers, splits, shards and windows."""
