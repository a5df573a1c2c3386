# SPDX-License-Identifier: MIT
"""The networks of a detector, and the steps from an image to detections."""
