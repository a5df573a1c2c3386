# SPDX-License-Identifier: MIT
"""The table of operators, for the configuration, the selfcheck and the benchmark."""

from typing import NamedTuple

from jax_dcn._src.deform_aggregate.rules import deform_aggregate_p
from jax_dcn._src.deform_aggregate.selfcheck import AGGREGATE, ATTENTION, DCN3, DCN4, GRID
from jax_dcn._src.deform_conv2d.benchmark import BENCHMARK as CONV_BENCHMARK
from jax_dcn._src.deform_conv2d.rules import deform_conv2d_p
from jax_dcn._src.deform_conv2d.selfcheck import CONV
from jax_dcn._src.deform_roi_pool.rules import deform_roi_pool_p
from jax_dcn._src.deform_roi_pool.selfcheck import ALIGN, POOL
from jax_dcn._src.operator.extension import OperatorPrimitive
from jax_dcn._src.operator.problem import Benchmark, Problem


class Operator(NamedTuple):
    """A public function of the package.

    Attributes:
      primitive: The primitive that the function calls, which knows the implementations.
      problem: The problem on which the selfcheck compares the implementations.
      benchmark: The layers that `python -m jax_dcn --benchmark` times, if any.
    """

    primitive: OperatorPrimitive
    problem: Problem
    benchmark: Benchmark | None = None


OPERATORS = {
    "dcnv3": Operator(deform_aggregate_p, DCN3),
    "dcnv4": Operator(deform_aggregate_p, DCN4),
    "deform_aggregate": Operator(deform_aggregate_p, AGGREGATE),
    "deform_conv2d": Operator(deform_conv2d_p, CONV, CONV_BENCHMARK),
    "deform_roi_align": Operator(deform_roi_pool_p, ALIGN),
    "deform_roi_pool": Operator(deform_roi_pool_p, POOL),
    "grid_sample": Operator(deform_aggregate_p, GRID),
    "ms_deform_attn": Operator(deform_aggregate_p, ATTENTION),
}
