"""Quantization error of a trained run's sparse convolutions, layer by layer."""

from typing import TYPE_CHECKING, Any

import jax

from quantnet_jax.models.layers import replace_convolutions
from quantnet_jax.models.sparse import SparseConv
from quantnet_jax.tasks import layer_inputs
from quantnet_jax.training.state import eval_state
from quantnet_jax.trees import tree

if TYPE_CHECKING:
    from quantnet_jax.training.experiment import Experiment
    from quantnet_jax.training.state import TrainState


def output_errors(exp: "Experiment", state: "TrainState") -> dict[str, float]:
    """{path of a sparse convolution: its `output_error`} on the test examples.

    Of the hard network, as it is evaluated: y are the outputs of a layer's latent
    weights for its inputs before they are quantized, z those that it computes; 0 where
    neither is quantized. The mean over evaluation batches, on one device.

    Args:
      exp: the experiment, of a network such as 'sparse2d'.
      state: of the run.
    """
    state = eval_state(jax.device_get(state))
    model, prepare = exp.model.clone(axis_name=None), exp.prepare["test"]
    latent = state.params["model"]
    hard = tree.dequantize_tree(exp.quantizer.hard(state.params["quant"], latent))
    data = exp.feed.test_data

    @jax.jit
    def errors(latent: Any, hard: Any, batch: Any) -> dict[str, jax.Array]:
        seen: dict[str, Any] = {}

        def look(layer, path, *given):
            seen[path] = layer_inputs.input_of(layer, *given)

        variables = {"params": hard, "batch_stats": state.batch_stats}
        with replace_convolutions(look, (SparseConv,)):
            model.apply(variables, prepare(data, batch)["input"])
        before, after = tree.flatten(latent), tree.flatten(hard)
        kernels = {path: f"{path}/kernel" for path in seen}
        return {
            path: layer_inputs.output_error(seen[path], before[name], after[name])
            for path, name in kernels.items()
        }

    found = [jax.device_get(errors(latent, hard, batch)) for batch in exp.feed.test()]
    return {k: float(sum(x[k] for x in found) / len(found)) for k in found[0]}
