# SPDX-License-Identifier: MIT
"""The page to play with, run in Chromium: its arithmetic is that of the reference."""

import json
import pathlib
import re
import shutil
import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn.reference import deform_conv2d

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "playground.html"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NAMESPACE = "http://www.w3.org/2000/svg"
SIZE, POSITION = (5, 7), (1, 5)
# Positions along an axis: on pixels, between them, on both edges of both rules, beyond them.
EDGES = {
    axis: [-1.5, -1, -0.25, 0, 0.75, 2, size - 1, size - 0.5, size, size + 1]
    for axis, size in enumerate(SIZE)
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def problems(boundary: str) -> list[dict]:
    """Random problems, as the page takes them; half of the positions are those of `EDGES`."""
    random = np.random.default_rng(0)
    grid = np.indices((3, 3)).reshape(2, 9).T - 1 + POSITION

    def problem() -> dict:
        free = random.uniform(-2, np.add(SIZE, 1), (9, 2))
        edges = np.stack([random.choice(EDGES[axis], 9) for axis in (0, 1)], -1)
        return {
            "image": random.normal(size=SIZE).tolist(),
            "position": POSITION,
            "offset": (np.where(random.random((9, 2)) < 0.5, edges, free) - grid).tolist(),
            "mask": random.random(9).tolist(),
            "kernel": random.normal(size=9).tolist(),
            "boundary": boundary,
        }

    return [problem() for _ in range(40)]


def run_page(tmp_path: pathlib.Path, script: str):
    """What `script`, appended to the page, returns."""
    page = tmp_path / "page.html"
    put = f"const answer = document.createElement('pre'); answer.id = 'answer'; answer.textContent = JSON.stringify({script}); document.body.append(answer);"
    page.write_text(PAGE.read_text().replace("</body>", f"<script>{put}</script></body>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    (answer,) = re.findall(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL) or [done.stderr]
    return json.loads(answer.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@partial(jax.jit, static_argnames="boundary")
def expected(image, kernel, offset, mask, *, boundary: str) -> dict:
    """Output values at `POSITION` of the reference, and their gradients, for several problems."""
    geometry = conv_geometry(SIZE, (3, 3), padding="SAME", boundary=boundary)

    def value(image, kernel, offset, mask):
        at = (0, *POSITION, 0)
        y = deform_conv2d(
            image.reshape(1, *SIZE, 1),
            kernel.reshape(3, 3, 1, 1),
            jnp.zeros((1, *SIZE, 1, 9, 2)).at[at].set(offset),
            jnp.ones((1, *SIZE, 1, 9)).at[at].set(mask),
            jnp.zeros(1),
            geometry=geometry,
        )
        return y[at]

    differentiated = jax.value_and_grad(value, argnums=(0, 1, 2, 3))
    y, gradients = jax.vmap(differentiated)(image, kernel, offset, mask)
    names = ("gradImage", "gradKernel", "gradOffset", "gradMask")
    return {"y": y, **dict(zip(names, gradients, strict=True))}


def test_the_page_computes_the_reference(tmp_path):
    given = {boundary: problems(boundary) for boundary in ("padded", "legacy")}
    script = f"Object.values({json.dumps(given)}).map((problems) => problems.map(evaluate))"
    for (boundary, cases), found in zip(given.items(), run_page(tmp_path, script), strict=True):
        operands = (
            np.array([case[name] for case in cases])
            for name in ("image", "kernel", "offset", "mask")
        )
        for name, arrays in expected(*operands, boundary=boundary).items():
            got = [
                result[name] if name in result else [tap[name] for tap in result["taps"]]
                for result in found
            ]
            np.testing.assert_allclose(got, arrays, rtol=1e-12, atol=1e-13, err_msg=name)


def test_the_page_shows_what_it_computes(tmp_path):
    script = """[
        state.selected, document.getElementById("y").textContent,
        [...document.querySelectorAll("#rules tr")].map((row) => row.textContent),
        ["padded", "legacy"].map((boundary) => evaluate({...state, boundary})),
        state.kernel[state.selected],
    ]"""
    selected, y, rows, results, weight = run_page(tmp_path, script)
    assert y == f"{results[0]['y']:.3f}"
    for boundary, row, result in zip(("padded", "legacy"), rows, results, strict=True):
        tap = result["taps"][selected]
        dy, dx = tap["gradOffset"]
        value, grad_mask, grad_kernel = tap["value"], tap["gradMask"], tap["gradKernel"]
        shown = [f"{n:.3f}" for n in (value, weight * grad_kernel, dy, dx, grad_mask, grad_kernel)]
        cells = [*shown[:2], ", ".join(shown[2:4]), *shown[4:]]
        assert row == "".join([f'"{boundary}"', *cells]).replace("-", "−")


def test_the_page_needs_no_network():
    assert not re.findall(r"https?:|src=|@import|url\(", PAGE.read_text().replace(NAMESPACE, ""))
