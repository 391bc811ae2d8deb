"""The networks: transformers, the teacher, transition cells, and the RNN."""
