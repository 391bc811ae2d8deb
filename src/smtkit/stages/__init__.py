"""One module per command. Each is `run(config, ...) -> Manifest`; stages meet only on disk."""
