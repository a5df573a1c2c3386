# SPDX-License-Identifier: MIT
"""Windows of DCNv3 and DCNv4, and the published formula in PyTorch, shared by tests."""

import numpy as np

# Sizes of all axes differ, and so do the options of height and width.
BATCH, GROUPS, GROUP_CHANNELS = 2, 3, 2
CHANNELS = GROUPS * GROUP_CHANNELS
WINDOWS = {
    "plain": dict(),
    "stretched": dict(offset_scale=1.5),
    "without_centre": dict(kernel_size=(5, 3), remove_center=True, offset_scale=2.0),
    "even": dict(kernel_size=(2, 4), kernel_dilation=(3, 1), offset_scale=0.5),
    "strided": dict(strides=(2, 1), padding=((1, 0), (2, 3)), kernel_dilation=(1, 2)),
    "one_tap": dict(kernel_size=1, padding="VALID"),
}
DEFAULTS = dict(
    kernel_size=3,
    strides=1,
    padding="SAME",
    kernel_dilation=1,
    offset_scale=1.0,
    remove_center=False,
)


class Window:
    """The options of a window by axis, and its output size, for images of one size."""

    def __init__(self, options: dict, size: tuple[int, int] = (5, 7)):
        self.options, self.size = options, size
        options = DEFAULTS | options
        pair = lambda v: (v, v) if isinstance(v, int) else v
        self.kernel, self.dilation = pair(options["kernel_size"]), pair(options["kernel_dilation"])
        self.strides, self.scale = pair(options["strides"]), options["offset_scale"]
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        named = {"SAME": [(r // 2, r - r // 2) for r in reach], "VALID": [(0, 0)] * 2}
        self.padding = named.get(str(options["padding"]), options["padding"])
        sizes = zip(size, self.padding, reach, self.strides, strict=True)
        self.output = tuple((n + sum(pads) - r - 1) // s + 1 for n, pads, r, s in sizes)
        # Taps (row, column) in the published order.
        taps = [(j, i) for i in range(self.kernel[1]) for j in range(self.kernel[0])]
        if options["remove_center"]:
            taps.remove((self.kernel[0] // 2, self.kernel[1] // 2))
        self.taps = taps

    def arrays(self) -> tuple:
        """Random `(x, offset, mask)`."""
        random = np.random.default_rng(0)
        samples = (BATCH, *self.output, GROUPS, len(self.taps))
        x = random.normal(size=(BATCH, *self.size, CHANNELS))
        offset = random.uniform(-1.9, 1.9, (*samples, 2))
        return x, np.where(abs(offset) < 0.2, 0.0, offset), random.normal(size=samples)

    def position(self, axis: int, output: int, tap: int, offset: float) -> float:
        """The formula of the published CUDA kernel."""
        centre = (self.dilation[axis] * (self.kernel[axis] - 1)) >> 1
        p0 = centre - self.padding[axis][0] + output * self.strides[axis]
        return p0 - centre * self.scale + (tap * self.dilation[axis] + offset) * self.scale


def in_torch(torch, window: Window, x, offset, mask):
    """InternImage's formula by PyTorch's grid_sample, group by group, with positions in float64."""
    height, width = window.size
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in window.output)
    groups = []
    for group, image in enumerate(x.chunk(offset.shape[3], -1)):
        positions = []
        for t, (row, column) in enumerate(window.taps):
            of_tap = offset[:, :, :, group, t]
            h = window.position(0, rows[:, None], row, of_tap[..., 1])
            positions.append([window.position(1, columns, column, of_tap[..., 0]), h])
        grid = torch.stack([torch.stack(pair, -1) for pair in positions], -2)
        grid = (2 * grid + 1) / torch.tensor([width, height]) - 1
        image = image.permute(0, 3, 1, 2)
        read = torch.nn.functional.grid_sample(image, grid.flatten(2, 3), align_corners=False)
        weights = mask[:, :, :, group].flatten(2, 3)[:, None]
        sums = (read * weights).unflatten(3, (window.output[1], -1)).sum(-1)
        groups.append(sums.permute(0, 2, 3, 1))
    return torch.cat(groups, -1)
