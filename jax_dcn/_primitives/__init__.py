# SPDX-License-Identifier: MIT
"""The operators as JAX primitives: shape, derivative, transpose, batching and lowering rules."""
