"""Tests of the text reader, and of what one training step sends between devices."""

import functools

import jax
import pytest
from tiny import tiny_config

from quantnet_jax.analysis.collectives import collectives, expected_bytes, volume
from quantnet_jax.distributed import runners
from quantnet_jax.training import experiment

CPU = """
ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0), metadata={op_name="all-reduce(x)"}
  %n = (f32[4]{0}, pred[]) tuple(%a, %b)
  %all-reduce.24 = (f32[4]{0}, bf16[3,3,2,4]{3,2,1,0}, /*index=2*/f32[]) all-reduce(%a, %b, /*index=2*/%c), channel_id=2, to_apply=%add
  %psum.1 = f32[2,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}
  %all-gather = f32[8,16]{0,1} all-gather(%p), dimensions={1}
  ROOT %reduce-scatter.1 = f32[8,1]{1,0} reduce-scatter(%p), dimensions={1}
  %use = f32[8,4]{1,0} fusion(%all-reduce.24), kind=kLoop, calls=%all-reduce-like
}
"""  # noqa: E501
TPU = """
  %x = f32[8,128]{1,0:T(8,128)} copy(%p)
  %y = u8[64]{0:T(256)(4,1)} copy(%q)
  %all-gather-start = (f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%x), channel_id=3
  %all-gather-done = f32[32,128]{1,0:T(8,128)} all-gather-done(%all-gather-start)
  %all-reduce-start = f32[8,128]{1,0:T(8,128)} all-reduce-start(%x), channel_id=4
  %all-reduce-done = f32[8,128]{1,0:T(8,128)} all-reduce-done(%all-reduce-start)
  %s = u8[16]{0:T(256)(4,1)} reduce-scatter(%y), dimensions={0}
"""  # noqa: E501


def test_text_of_a_program_for_cpus():
    reduced, alone, gathered, scattered = collectives(CPU)
    assert reduced.kind == "all-reduce"
    assert reduced.arrays == ("f32[4]", "bf16[3,3,2,4]", "f32[]")
    assert reduced.bytes == 4 * 4 + 2 * 72 + 4
    assert (alone.arrays, alone.bytes) == (("f32[2,4]",), 32)
    # As large as the whole is: after gathering, before scattering.
    assert (gathered.kind, gathered.bytes) == ("all-gather", 4 * 8 * 16)
    assert (scattered.kind, scattered.bytes) == ("reduce-scatter", 4 * 8 * 4)


def test_text_of_a_program_for_tpus():
    """Operations that start and are done are one, and layouts are no shapes."""
    assert volume(collectives(TPU)) == {
        "all-gather": {"operations": 1, "arrays": 1, "bytes": 4 * 32 * 128},
        "all-reduce": {"operations": 1, "arrays": 1, "bytes": 4 * 8 * 128},
        "reduce-scatter": {"operations": 1, "arrays": 1, "bytes": 64},
    }


def test_program_of_one_device_sends_nothing():
    text = jax.jit(lambda x: x.sum()).lower(jax.numpy.ones(8)).compile().as_text()
    assert collectives(text) == [] and volume([]) == {}


@functools.cache
def sent(runner, **changes):
    """(collectives of a training step, its state)."""
    exp = experiment.build(tiny_config(runner=runner, **changes))
    batch = next(exp.train_batches(0))
    lowered = exp.train_step.lower(exp.state, exp.train_data, batch)
    return collectives(lowered.compile().as_text()), exp.state


@pytest.mark.parametrize("runner", runners.RUNNERS)
def test_a_step_reduces_gradients_and_batch_statistics_once(runner):
    found, state = sent(runner)
    assert {one.kind for one in found} == {"all-reduce"}
    total = sum(one.bytes for one in found)
    sizes = expected_bytes(state.params, state.batch_stats)
    scalars = [x for one in found for x in one.arrays if x == "f32[]"]
    assert 1 <= len(scalars) <= 4  # the count of examples, loss, accuracy, penalty
    if runner == "pmap":  # what the program asks for, to the byte
        assert total - 4 * len(scalars) == sum(sizes.values())
    else:
        # The compiler reduces the weights' gradient before it goes on to that of the
        # sub-network, and a bias' gradient, which makes its mean's, once.
        least = expected_bytes(state.params["model"], state.batch_stats)
        assert least["gradients"] + least["statistics"] < total
        assert total <= sum(least.values()) + 4 * len(scalars)


def test_a_larger_batch_sends_nothing_more():
    """From 64 images on CPUs have kernel gradients of their own, in groups of them."""
    found, _ = sent("jit", batch_size=64, eval_every=1.28)
    assert volume(found) == volume(sent("jit")[0])


def test_every_gradient_is_reduced_under_its_own_shape():
    """Under pmap, whose program says what to reduce: nothing is split or repeated."""
    found, state = sent("pmap")
    arrays = [x for one in found for x in one.arrays]
    for x in jax.tree.leaves(state.params):
        arrays.remove(f"f32[{','.join(map(str, x.shape))}]")
    stats = [x.size for x in jax.tree.leaves(state.batch_stats)]
    pairs = [f"f32[2,{n}]" for n in stats]  # mean and mean square, together
    assert sorted(x for x in arrays if x != "f32[]") == sorted(pairs)
