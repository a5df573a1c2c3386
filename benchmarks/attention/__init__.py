# SPDX-License-Identifier: MIT
"""Multi-scale deformable attention and DCNv3 on CPU: this library against what others use."""
