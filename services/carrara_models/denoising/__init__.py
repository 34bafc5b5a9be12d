"""The denoising job and its numerics: what generators, and decoders that diffuse, are made of."""
