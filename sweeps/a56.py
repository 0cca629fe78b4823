"""ResNet-56, all layers, from a float network, by fixed settings: for a short loan."""

from configs import cifar100_resnet56
from quantnet_jax.experiments.study import FLOAT, Initialization, Row
from sweeps import common

STUDY = common.metaquant(
    "CIFAR-100, ResNet-56, all layers, 100 epochs from a float network of 200, "
    "settings fixed beforehand",
    cifar100_resnet56.get_config,
    {"float": 71.22, "best binary (BWN, Adam, FCGrad)": 67.02},
)._replace(
    rows={FLOAT: Row("identity"), "quantnet": Row("quantnet"), "dorefa": Row("dorefa")},
    initializations=(Initialization("warm", 200.0, 100.0),),
    learning_rates=(0.1,),
    seeds_first=True,
    eval_every=10.0,
    last=1,
)
