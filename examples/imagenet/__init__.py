# SPDX-License-Identifier: MIT
"""Image classifiers with ordinary and with deformable convolutions."""
