# SPDX-License-Identifier: MIT
"""Object detectors with deformable convolution and deformable RoI pooling."""
