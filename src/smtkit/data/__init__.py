"""From files to batches: sources, tokenizers, windows, labels, and the order of samples."""
