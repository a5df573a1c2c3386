# SPDX-License-Identifier: MIT
"""The parts of every operator as JAX primitives: definition, rules, sharding, native calls."""
