"""The three parts of text-to-image models, loaded, run, trained and measured; knows nothing of gRPC."""
