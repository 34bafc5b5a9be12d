"""Fast numerics: a part's networks in another precision and memory format, compiled or not.

| file | what it does |
|---|---|
| `networks.py` | finds a part's networks |
| `in_torch.py` | torch's own kernels, in any precision; compiled if wanted |
| `tiles.py` | large pictures decoded in tiles |
| `fast.py` | makes a part fast: which engine does what |
"""
