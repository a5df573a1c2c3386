# SPDX-License-Identifier: MIT
"""Times the operator on CPU against other engines and against ordinary convolutions."""
