r"""QuantNet on CIFAR-100: ResNet-56, all layers binary, from a float network.

Command:   python train.py --config=configs/cifar100_resnet56.py:float \
               --workdir=runs/cifar100_resnet56_float --config.data.folder=FOLDER
           python train.py --config=configs/cifar100_resnet56.py \
               --workdir=runs/cifar100_resnet56 --config.data.folder=FOLDER
           FOLDER holds the binary version of CIFAR-100; without it TFDS is asked.
           With all baselines: python -m quantnet_jax.experiments run resnet56 \
               --folder=FOLDER
Hardware:  one GPU, with --config.dtype=bfloat16 (weights and quantizers stay float32).
Wall time: not run yet.
Expected:  soft, hard, float: not run yet. Published for this protocol: float 71.22,
           best binary 67.02, tuned STE with Adam 66.42.

The protocol of MetaQuant (NeurIPS 2019): every layer, first and last too, has 1 bit;
100 epochs from a float checkpoint, batch 128; five seeds, and the mean test accuracy of
the last 10 epochs (in metrics.jsonl). The optimizer is ours; theirs for comparison:
--config.weights.optimizer=adam --config.weights.learning_rate=1e-3
--config.weights.schedule=steps --config.weights.milestones="(0.3,0.6,0.9)".
"""

from quantnet_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.metaquant("resnet56", variant)
