# SPDX-License-Identifier: MIT
"""Names of arguments in other libraries, and the names here."""

ARGUMENTS = {
    "input": "x",
    "boxes": "rois",
    "trans": "offset",
    "output_size": "pooled_size",
    "sample_per_part": "samples_per_part",
    # The two functions differ in their names of samples, and of how far offsets reach.
    "sampling_ratio": "samples_per_part",
    "samples_per_part": "sampling_ratio",
    "gamma": "trans_std",
    "trans_std": "gamma",
}
ABSENT = {"no_trans": "leave out the offset, which gives plain pooling"}

OPTIONS = ARGUMENTS | {
    "output_channels": "output_dim",
    "out_channels": "output_dim",
    "deform_fc_dim": "hidden_features",
    "deform_fc_channels": "hidden_features",
}
ABSENT_OPTIONS = {"no_trans": "write deformable=False for plain pooling"}
