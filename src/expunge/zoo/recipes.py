"""How the networks are trained on the named data sets."""

from __future__ import annotations

from expunge.train import Recipe
from expunge.zoo.networks import BASE, MINILM, PUBLIC

# Epochs and milestones of Selective Synaptic Dampening's published runs (J. Foster, S. Schoepf and A. Brintrup, 2024,
# https://arxiv.org/abs/2308.07707); those without an entry take CIFAR-10's.
RESNET = {
    "cifar10": (20, (8, 12, 16)),
    "cifar20": (40, (15, 30, 35)),
    "cifar100": (200, (60, 120, 160)),
    "orl_faces": (200, (60, 120, 160)),  # as for the faces of those runs
}
VIT_BASE = {"cifar10": (8, (7,)), "cifar20": (9, (8,)), "cifar100": (8, (7,))}
MIRRORED = ("cifar10", "cifar10_super", "cifar20", "cifar100", "fashion_mnist", "fashion_mnist_super")


def recipe(name: str, network: str) -> Recipe:
    """Return how a network is trained on a named data set.

    ResNet-18 and the pretrained ViT follow the published runs (SGD at 0.1, momentum 0.9, weight decay 5e-4, steps of
    0.2, one epoch of warm-up, batches of 64, random crops and mirroring), without their rotations and without their
    choice of the epoch by test accuracy. The others are short trainings for a CPU.

    Args:
        name: of the data set.
        network: its name.

    Returns:
        The recipe.
    """
    flip = name in MIRRORED
    if network in ("resnet18", BASE):
        published = RESNET if network == "resnet18" else VIT_BASE
        epochs, milestones = published.get(name, published["cifar10"])
        crop = 4 if network == "resnet18" else 28  # the same share of a side of 32 and of 224 pixels
        return Recipe(
            epochs=epochs, schedule="multistep", milestones=milestones, gamma=0.2, warmup=1, crop=crop, flip=flip
        )
    if network == "lenet":  # as IAU's released code trains it, epochs aside
        return Recipe(epochs=15, lr=1e-3, optimizer="adamw", weight_decay=0.0)
    if network == "vit":
        epochs = 60 if name == "orl_faces" else 30
        return Recipe(epochs=epochs, lr=1e-3, optimizer="adamw", weight_decay=0.05, warmup=2, clip=1.0, flip=flip)
    if network == PUBLIC:
        return Recipe(epochs=10, batch_size=32, lr=1e-3, optimizer="adamw", weight_decay=0.0, clip=1.0)
    if network == MINILM:
        return Recipe(
            epochs=3, batch_size=32, lr=1e-4, optimizer="adamw", weight_decay=0.01, schedule="linear", clip=1.0
        )
    if network in ("linear_forecast", "lstm_forecast"):
        rate = 5e-3 if network == "linear_forecast" else 1e-2
        return Recipe(epochs=10, lr=rate, optimizer="adamw", weight_decay=0.0, clip=1.0)
    if network == "tabular":  # nothing decays: an embedding row that no sample names stays as it was drawn
        return Recipe(epochs=10, batch_size=128, lr=2e-3, optimizer="adamw", weight_decay=0.0)
    if network in ("text", "text_pair"):
        return Recipe(epochs=5, lr=1e-3, optimizer="adamw", weight_decay=0.01, warmup=0.5, clip=1.0)
    if name == "orl_faces":  # 280 images
        return Recipe(epochs=60, batch_size=32, lr=0.05, warmup=1)
    return Recipe(epochs=15, lr=0.1 if network == "convnet" else 0.02)
