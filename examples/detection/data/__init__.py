# SPDX-License-Identifier: MIT
"""Images and objects, and how good detections are."""
