"""Reptile on Omniglot: 5 new characters from 5 drawings each, by Conv-4.

Command:   python train.py --config=configs/few_shot.py --config.data.folder=DIR
           --workdir=DIR, DIR with the archives of Omniglot. Pruned and released
           (DSD): --config.sparsity="{'schedule': 'piecewise', 'start': 0.0,
           'boundaries': ((0.3, 0.3), (0.9, 0.0))}"; sparse to the end:
           --config.sparsity=0.3; weights of QuantNet: :quantnet; the inner
           optimizer of Reptile, Adam with beta1 = 0: :adam
Hardware:  one CPU core, minutes
Expected:  accuracy on held-out alphabets, see docs/few_shot.md

Of the paper (arXiv 2007.03219) are the network, 5 tasks, 5 inner steps of 10 images and
the outer learning rate from 1 to 0. The inner optimizer is that of MAML, plain SGD at
0.4, which learns more in few iterations. The 100,000 of the paper are 600 here; and the
adaptation that is scored takes 15 steps of 25 images in place of 50 of 5. With the full
archives, of 19,280 training images instead of 2,720, the epochs below are 4,250
iterations.
"""

from quantnet_jax.config import base, recipes

ITERATIONS = 600
TASKS = 5


def get_config(variant: str = ""):
    c = base()
    c.batch_size = TASKS
    c.epochs = ITERATIONS * TASKS / 2720  # of as many tasks as training images
    c.eval_every = c.epochs
    c.eval_batch_size = 20
    c.recalibration_batches = 0
    c.export = False  # it adapts to each task: no weights ship

    c.task.name = "few_shot"
    c.task.few_shot.inner_optimizer, c.task.few_shot.inner_rate = "sgd", 0.4
    c.task.few_shot.test_steps = 15
    c.task.few_shot.test_batch_size = 25
    c.task.few_shot.episodes = 100
    c.data.name = "omniglot"
    c.data.pad = 0
    c.data.flip = False

    c.model.name = "conv4"
    c.model.width = 64
    c.quantizer.name = "identity"
    c.layers = "(?!stem/).*kernel"

    c.meta.mode = "reptile"
    for section in (c.weights, c.meta):
        section.optimizer, section.momentum = "sgd", 0.0
        section.weight_decay, section.learning_rate = 0.0, 1.0
        section.schedule = "linear"

    if variant == "adam":
        few, variant = c.task.few_shot, ""
        few.inner_optimizer, few.inner_rate = "adam", 1e-2
    if variant == "quantnet":
        c.quantizer.name, c.layers, variant = "quantnet", "inner", ""
    return recipes.variant_of(c, variant, shrink, ("quantnet", "adam"))


def shrink(c):
    c.eval_every = 1.0
    c.task.few_shot.ways = 3
    c.task.few_shot.episodes = 8
    c.task.few_shot.test_steps = 2
