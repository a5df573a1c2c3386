# SPDX-License-Identifier: MIT
"""Where the queries of deformable attention look: a handwritten digit is found on a photograph."""
