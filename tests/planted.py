"""Clips with planted classes: features, and two teachers that err on other clips."""

import numpy as np


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def planted(seed=0, clips=300, prior=(0.25,) * 4, told=(1.2, 1.2), sure=(1.0, 1.0), apart=1.3, width=24):
    """Classes (U,), features (U, D), and distributions (U, K) of a LALM and of a source classifier.

    Args:
        seed: of all draws.
        clips: U.
        prior: shares of the classes.
        told: how much each teacher knows: how far it raises the right logit above noise of deviation 1.
        sure: by which the logits of each teacher are multiplied.
        apart: deviation of the class centres from each other; the features' within classes is 2.
        width: D.
    """
    rng = np.random.default_rng(seed)
    classes = len(prior)
    truth = rng.choice(classes, size=clips, p=prior)
    features = apart * rng.normal(size=(classes, width))[truth] + 2 * rng.normal(size=(clips, width))
    teachers = []
    for number, (signal, scale) in enumerate(zip(told, sure, strict=True)):
        bias = 0.5 * np.eye(classes)[-number]
        logits = signal * np.eye(classes)[truth] + bias + rng.normal(size=(clips, classes))
        teachers.append(softmax(scale * logits))
    return truth, features, *teachers


def right(probs, truth):
    """Share of the clips whose most probable class is the true one."""
    return (probs.argmax(axis=1) == truth).mean()
