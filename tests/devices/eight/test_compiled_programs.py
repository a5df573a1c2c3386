# SPDX-License-Identifier: MIT
"""Programs for several devices are exported, cached and traced, and reuse the memory they are given."""

import re

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

import jax_dcn
from tests.deform_conv2d.row import IMAGES, SPREAD
from tests.devices.collectives import collectives
from tests.devices.meshes import gradients, mesh, operator, place


def test_program_on_an_explicit_mesh_exports_as_it_is_split():
    devices = mesh(AxisType.Explicit, data=4)
    with jax.set_mesh(devices):
        arrays = place(SPREAD, devices, **IMAGES)
        f = jax.jit(operator(SPREAD))
        exported = jax.export.export(f, disabled_checks=jax_dcn.export_disabled_checks)(*arrays)
        y = jax.jit(exported.call)(*arrays)
    assert exported.nr_devices == 4
    local = f"tensor<1x{SPREAD.output[0]}x{SPREAD.output[1]}x{SPREAD.features}xf32>"
    assert re.search(rf"custom_call @jax_dcn.*-> {local}", exported.mlir_module())
    np.testing.assert_allclose(y, operator(SPREAD)(*SPREAD.arrays()), rtol=1e-4, atol=1e-4)


def test_program_on_an_automatic_mesh_exports_and_is_right():
    arrays = place(SPREAD, **IMAGES)
    f = jax.jit(operator(SPREAD))
    exported = jax.export.export(f, disabled_checks=jax_dcn.export_disabled_checks)(*arrays)
    y = jax.jit(exported.call)(*arrays)
    np.testing.assert_allclose(y, operator(SPREAD)(*SPREAD.arrays()), rtol=1e-4, atol=1e-4)


def test_exported_reference_is_split_by_xla():
    arrays = place(SPREAD, **IMAGES)
    both = lambda *a: (operator(SPREAD, "xla")(*a), gradients(SPREAD, "xla")(*a))
    exported = jax.export.export(jax.jit(both))(*arrays)
    (sums,) = collectives(jax.jit(exported.call).lower(*arrays).compile())
    assert sums.kind == "all-reduce" and sums.bytes == arrays[1].nbytes + arrays[4].nbytes


@pytest.mark.parametrize(("platform", "called"), [("cpu", True), ("tpu", False)])
def test_program_for_tpu_does_not_call_back_to_be_split(platform, called):
    traced = jax.jit(gradients(SPREAD)).trace(*place(SPREAD, **IMAGES))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("CustomSPMDPartitioning" in text) == called


def test_trace_names_the_operator_and_its_gradient():
    program = jax.jit(gradients(SPREAD)).lower(*place(SPREAD, **IMAGES)).compile().as_text()
    names = re.findall(
        r'custom-call.*custom_call_target="jax_dcn_(\w+)".*op_name="([^"]*)"', program
    )
    assert names and all("deform_conv2d" in scope for _, scope in names)


def test_donated_images_are_reused_for_their_gradient():
    step = lambda *a: a[0] - gradients(SPREAD)(*a)[0]
    arrays = place(SPREAD, **IMAGES)
    program = jax.jit(step, donate_argnums=0).lower(*arrays).compile()
    assert program.memory_analysis().alias_size_in_bytes == arrays[0].nbytes // 4
    program(*arrays)
    assert arrays[0].is_deleted() and not arrays[1].is_deleted()


@pytest.fixture
def cache_hits(tmp_path):
    """Counts the hits in an empty compilation cache."""
    hits = []
    listen = lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    jax.monitoring.register_event_listener(listen)
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield hits
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.monitoring.unregister_event_listener(listen)


def test_compilation_cache_is_hit_by_split_programs(cache_hits):
    arrays = place(SPREAD, **IMAGES)
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    try:
        for _ in range(2):
            jax.clear_caches()
            y = jax.jit(operator(SPREAD))(*arrays)
    finally:
        jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", False)
    assert len(cache_hits) == 1
    np.testing.assert_allclose(y, operator(SPREAD)(*SPREAD.arrays()), rtol=1e-4, atol=1e-4)


def test_compilation_cache_is_hit_by_programs_for_one_device(cache_hits):
    expected = gradients(SPREAD)(*SPREAD.arrays())
    cache_hits.clear()
    for _ in range(2):
        jax.clear_caches()
        found = jax.jit(gradients(SPREAD))(*SPREAD.arrays())
    assert len(cache_hits) == 1
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
