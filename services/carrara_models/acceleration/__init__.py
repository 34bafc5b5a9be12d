"""Fast numerics: a part's networks in another precision and memory format, compiled or not.

| file | what it does |
|---|---|
| `networks.py` | finds a part's networks |
| `in_torch.py` | torch's own kernels, in any precision; compiled if wanted |
| `cuda_graphs.py` | calls replayed as CUDA graphs, on a GPU |
| `upsampling.py` | upsampling and the convolution behind it in one |
| `tiles.py` | large pictures decoded in tiles |
| `in_openvino.py` | OpenVINO's kernels, for CPUs |
| `warm_up.py` | what is made ready for a shape before a stage serves |
| `calls.py` | what a network is called with |
| `fast.py` | makes a part fast: which engine does what |
"""
