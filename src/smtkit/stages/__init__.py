"""One module a stage. Each is `run(config, ...) -> Manifest`; stages meet only on disk."""
