# SPDX-License-Identifier: MIT
"""Proof and measurements of the CUDA kernels on a GPU: `python -m benchmarks.gpu`"""
