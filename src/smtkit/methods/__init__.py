"""Training methods: each with its batch, its sampler and its loss in one module."""
