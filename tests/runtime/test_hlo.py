"""Reading compiled programs: which axis a transfer follows, how often, and how much is moved."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vadapt.runtime.hlo import Array, Module, _groups

MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def totals(compiled):
    found = collections.Counter()
    for transfer in Module(compiled.as_text()).collectives(MESH):
        found[transfer.kind, transfer.axis] += transfer.bytes
    return dict(found)


def mapped(mesh, body, inputs, outputs):
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=inputs, out_specs=outputs))


@pytest.mark.parametrize("axes", ["data", "fsdp", ("data", "fsdp")])
def test_a_transfer_is_named_by_its_axis(mesh, axes):
    spec = PartitionSpec(("data", "fsdp"))
    step = mapped(mesh, lambda x: jax.lax.psum(x, axes), spec, PartitionSpec())
    if axes != ("data", "fsdp"):  # the sum still differs along the other axis
        other = "fsdp" if axes == "data" else "data"
        step = mapped(mesh, lambda x: jax.lax.psum(x, axes), spec, PartitionSpec(other))
    compiled = step.lower(jnp.ones((64, 16))).compile()
    name = axes if isinstance(axes, str) else "data+fsdp"
    assert totals(compiled) == {("all-reduce", name): 8 * 16 * 4}


def test_gathers_and_permutations_count_what_arrives(mesh):
    spec = PartitionSpec("fsdp")
    gather = mapped(mesh, lambda x: jax.lax.all_gather(x, "fsdp"), spec, spec)
    assert totals(gather.lower(jnp.ones((8, 3))).compile()) == {("all-gather", "fsdp"): 96}
    ring = [(i, (i + 1) % 4) for i in range(4)]
    turn = mapped(mesh, lambda x: jax.lax.ppermute(x, "fsdp", ring), spec, spec)
    assert totals(turn.lower(jnp.ones((8, 3))).compile()) == {("collective-permute", "fsdp"): 24}


def test_a_transfer_in_a_loop_counts_as_often_as_the_loop_runs(mesh):
    def body(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(jax.lax.psum(x, "data")), x)

    spec = PartitionSpec("fsdp")
    compiled = mapped(mesh, body, spec, spec).lower(jnp.ones((8, 3))).compile()
    assert totals(compiled) == {("all-reduce", "data"): 5 * 24}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [(0, 2), (1, 3)]),
        ("replica_groups={}, x", []),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [(0, 1, 2, 3)]),
        (
            "replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}, x",
            [(0, 1), (2, 3)],
        ),
        ("source_target_pairs={{0,1},{1,0}}, x", [(0, 1), (1, 0)]),
    ],
)
def test_the_ways_in_which_groups_are_written(text, groups):
    assert _groups(text) == groups


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("1,0", 197 * 64 * 4),
        ("1,0:T(8,128)", 200 * 128 * 4),
        ("0,1:T(8,128)", 256 * 64 * 4),
        ("1,0:T(8,128)S(1)", 0),
    ],
)
def test_arrays_are_padded_to_tiles_and_free_on_the_chip(layout, size):
    assert Array("f32", (197, 64), layout).memory_bytes == size


def test_memory_traffic_is_what_is_read_and_written():
    x = jnp.ones((1000, 100))
    compiled = jax.jit(lambda x: jnp.tanh(x) + 1.0).lower(x).compile()
    assert Module(compiled.as_text()).memory_traffic() == 2 * x.nbytes


@pytest.mark.parametrize(
    ("run", "moved"),
    [
        # A row and its place in, a row out.
        (lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 1) * 2, 2 * 400),
        # In a loop as often as it runs: rows of x are read, and rows written over zeros.
        (lambda x, i: jax.lax.map(lambda row: row * 2, x), 3 * 1000 * 400),
    ],
)
def test_of_what_is_sliced_and_updated_the_parts_count(run, moved):
    compiled = jax.jit(run).lower(jnp.ones((1000, 100)), 3).compile()
    found = Module(compiled.as_text()).memory_traffic()
    assert moved <= found <= 1.1 * moved + 64


def test_an_array_updated_in_its_place_is_neither_read_nor_written_whole():
    text = """
%fused (p0: f32[10,64], p1: f32[64], p2: s32[]) -> f32[10,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,64]{1,0} bitcast(%p1)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,64]{1,0} dynamic-update-slice(%p0, %row, %p2, %zero)
}

ENTRY %main (a: f32[10,64], b: f32[64], i: s32[]) -> f32[10,64] {
  %a = f32[10,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[10,64]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    assert Module(text).memory_traffic() == 2 * 64 * 4


def test_combined_transfers_are_one():
    text = """
ENTRY %main (a: f32[8], b: bf16[2,4]) -> (f32[8], bf16[2,4]) {
  %a = f32[8]{0} parameter(0)
  %b = bf16[2,4]{1,0} parameter(1)
  ROOT %r = (f32[8]{0}, /*index=1*/bf16[2,4]{1,0:T(2,128)(2,1)S(1)}) all-reduce(%a, %b), \
channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="replica_groups={{0}}"}
}
"""
    (transfer,) = Module(text).collectives(MESH)
    assert transfer == ("all-reduce", 8 * 4 + 8 * 2, "data+fsdp")


def test_sharded_weights_are_gathered_where_they_are_used(mesh):
    """What `sharding.gather` is for: no activations travel, whatever way the weights are split."""
    from vadapt import sharding

    weights = [jnp.ones((64, 64))] * 2
    places = [NamedSharding(mesh, PartitionSpec(None, "fsdp"))] * 2
    images = jax.device_put(np.ones((16, 64), np.float32), sharding.batch_sharding(mesh))

    def layers(weights, x):
        first, second = sharding.gather(weights, mesh)
        return jnp.tanh(x @ first) @ second

    arguments = jax.device_put(weights, places), images
    found = totals(jax.jit(layers).lower(*arguments).compile())
    assert found == {("all-gather", "fsdp"): 2 * 64 * 64 * 4}
