# SPDX-License-Identifier: MIT
"""Recipes, losses, and the step from one state of training to the next."""
