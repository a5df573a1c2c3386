# SPDX-License-Identifier: MIT
"""Times the forward pass with few channels in an offset group: `python -m benchmarks.cpu.few_channels`.

The environment variable JAX_DCN_INSTRUCTION_SET chooses lesser kernels.
"""

import argparse

from benchmarks.cpu.engines import OURS, PLAIN_JAX
from benchmarks.cpu.measure import check, undisturbed_seconds
from benchmarks.cpu.worker import Worker
from tests.deform_conv2d.cases import Case

ENGINES = (OURS, PLAIN_JAX, "onnxruntime")
SIZE = (56, 56)


def _cases() -> list[Case]:
    one_by_one = dict(kernel=(1, 1), padding="SAME")
    cases = []
    for channels in (1, 2, 4, 8):
        cases.append(Case(f"1x1, C={channels}", 1, SIZE, channels, 64, **one_by_one))
        cases.append(Case(f"3x3, C={channels}", 1, SIZE, channels, 64))
    return [
        *cases,
        Case("EDVR: 3x3, C=64, G=8", 1, (64, 64), 64, 64, offset_groups=8),
        Case("3x3, C=32, G=16", 1, SIZE, 32, 32, offset_groups=16),
        Case("1x1, C=64, G=64", 1, SIZE, 64, 64, offset_groups=64, **one_by_one),
        Case(
            "TOOD: 1x1, depthwise, C=4, G=4",
            *(1, (100, 100), 4, 4),
            feature_group_count=4,
            offset_groups=4,
            modulated=False,
            **one_by_one,
        ),
        *(
            Case(
                f"heads: 3x3, C=64, {heads} groups",
                *(1, SIZE, 64, 64),
                feature_group_count=heads,
                offset_groups=heads,
            )
            for heads in (8, 16)
        ),
    ]


CASES = _cases()


def least_milliseconds(workers: dict[str, Worker], case: Case, rounds: int) -> dict[str, float]:
    """The least time of each engine over interleaved rounds."""
    keys = [(name, case, "forward", "float32") for name in workers]
    for name, *key in keys:
        workers[name]("prepare", *key)
    check(workers, keys)
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, *key in keys:
            seconds[name] += undisturbed_seconds(workers[name], tuple(key))
    return {name: 1e3 * min(samples) for name, samples in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="times that each engine is visited")
    options = parser.parse_args()
    workers = {name: Worker(name, options.threads) for name in ENGINES}
    print(f"{'milliseconds':34}", *(f"{name:>12}" for name in ENGINES), "  ratio to the best other")
    for case in CASES:
        times = least_milliseconds(workers, case, options.rounds)
        ratio = times[OURS] / min(times[name] for name in ENGINES[1:])
        print(
            f"{case.name:34}", *(f"{t:12.3f}" for t in times.values()), f"  {ratio:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
