"""The three parts of text-to-image models: loaded, run, trained, measured; knows nothing of gRPC."""
