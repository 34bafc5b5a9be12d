"""Fast numerics: a part's networks in another precision, another memory format, another engine.

| file | what it does |
|---|---|
| `networks.py` | finds a part's networks |
| `in_torch.py` | torch's own kernels, in a chosen precision; compiled if wanted |
| `in_openvino.py` | OpenVINO's CPU plug-in |
| `fast.py` | makes a part fast; which engine does what |
"""
