"""The three parts of text-to-image models: loaded, run, trained, measured; without any gRPC."""
