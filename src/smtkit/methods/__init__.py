"""A method is an objective: networks and a batch in, sums of losses out."""
