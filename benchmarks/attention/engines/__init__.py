# SPDX-License-Identifier: MIT
"""The engines to compare, as in `benchmarks.cpu.engines`: modules with `version` and `prepare`.

The results are y and, in training, the gradients of value, locations and weights.
"""

OURS = "jax_dcn"
XLA = "jax_dcn_xla"
DEPTHWISE = "depthwise"
GATHER = "jax_gather"
PEERS = ("torch_grid_sample", "torch_ms_deform_attn", "onnxruntime", GATHER)
ENGINES = (OURS, XLA, DEPTHWISE, *PEERS)
