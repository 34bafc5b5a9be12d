"""Each part of a text-to-image model as a gRPC service of its own."""
