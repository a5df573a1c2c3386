# SPDX-License-Identifier: MIT
"""Warped handwritten digits, with ordinary and with deformable convolutions.

A program of its own beside `examples.imagenet`, which trains one network on one data set: this one
compares kinds of networks over seeds under one budget, and warps its images inside the compiled step.
"""
