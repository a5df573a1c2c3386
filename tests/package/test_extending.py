# SPDX-License-Identifier: MIT
"""A new operator, made by following docs/extending.md in a copy of the package, works."""

import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
# The copy is found before an installed package, and has no kernels.
RUN = """
import sys, warnings
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {folder!r})
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np
from jax.test_util import check_grads
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
import jax_dcn
assert jax_dcn.__file__.startswith({folder!r})

draw = np.random.default_rng(0).normal
x, points = draw(size=(2, 5, 6, 3)), draw(size=(2, 7, 2)) + 2.3
y = jax_dcn.sample_points(x, points)
assert y.shape == (2, 7, 3)
whole = jax_dcn.sample_points(x, np.floor(points[:, :1]))[:, 0]
at = np.floor(points[:, 0]).astype(int)
np.testing.assert_array_equal(whole, x[np.arange(2), at[:, 0], at[:, 1]])
check_grads(jax_dcn.sample_points, (x, points), order=2, rtol=1e-5)
many = jnp.stack([points, points + 0.4, points - 0.2])
np.testing.assert_allclose(
    jax.vmap(jax_dcn.sample_points, (None, 0))(x, many), [jax_dcn.sample_points(x, p) for p in many]
)
assert jax.vmap(jax_dcn.sample_points, (None, 0))(x, many[:0]).shape == (0, 2, 7, 3)
mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
for axes in (("data",), (None, "data")):
    split = NamedSharding(mesh, PartitionSpec(*axes))
    whole = NamedSharding(mesh, PartitionSpec())
    wide = jnp.concatenate([points, points[:, :1]], 1)
    placed = jax.device_put(x, split if axes[0] else whole), jax.device_put(wide, split)
    got = jax.jit(jax_dcn.sample_points)(*placed)
    assert got.sharding.is_equivalent_to(split, 3)
    np.testing.assert_array_equal(got, jax_dcn.sample_points(x, wide))
try:
    jax_dcn.sample_points(x, points[0])
except ValueError as error:
    assert "points" in str(error)
else:
    raise AssertionError("points of a wrong shape were accepted")
jax_dcn.show_config()
from jax_dcn.installation import selfcheck
selfcheck.OPERATORS = {{"sample_points": selfcheck.OPERATORS["sample_points"]}}
assert selfcheck.selfcheck()
"""


def test_an_operator_made_by_the_page_works(tmp_path):
    package = tmp_path / "jax_dcn"
    shutil.copytree(ROOT / "jax_dcn", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    files = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    assert len(files) == 8
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        with path.open("a") as file:
            file.write(text)
    command = [sys.executable, "-c", RUN.format(folder=str(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sample_points" in done.stdout
