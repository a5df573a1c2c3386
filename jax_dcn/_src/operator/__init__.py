# SPDX-License-Identifier: MIT
"""What makes any operator a family of JAX primitives: definition, rules, sharding, native calls."""
