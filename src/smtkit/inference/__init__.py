"""Trained networks in use: an RNN or a teacher with its tokenizer, and the export of an RNN."""
