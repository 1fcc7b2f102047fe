"""Transformed images that are misclassified: a grid of parameters, tried one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from certify.bounds.evaluate import evaluate
from certify.core.graph import Graph
from certify.evaluation.transformed.provers import Task
from certify.semantic.transforms import image_graph, named
from certify.semantic.warp import warped_boxes

_AT_ONCE = 512  # images evaluated together


def grid_points(task: Task, count: int) -> np.ndarray:
    """About ``count`` evenly spaced parameters ``(M, k)``, ends included."""
    ranges = list(zip(task.pieces.lower, task.pieces.upper, strict=True))
    free = sum(high > low for low, high in ranges)
    each = max(2, round(count ** (1 / max(1, free))))
    axes = [np.linspace(low, high, each if high > low else 1) for low, high in ranges]
    found: np.ndarray = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    return found


def predictions(task: Task, points: np.ndarray) -> np.ndarray:
    """Labels ``(N, M)`` of every image after every transformation, by plain float arithmetic."""
    names = task.pieces.names
    moves = [n for n in names if named([n])[0].geometric]
    found = np.empty((len(task.images), len(points)), dtype=np.int64)
    with torch.no_grad():
        if len(moves) == len(names):  # one interpolation serves all images
            for k, point in enumerate(points):
                images = _moved(task.images, moves, point)
                found[:, k] = _labels(task.network, images)
            return found
        for n, image in enumerate(task.images):
            graph = image_graph(image, names)
            for i in range(0, len(points), _AT_ONCE):
                images = evaluate(graph, torch.from_numpy(points[i:i + _AT_ONCE])).numpy()
                found[n, i:i + _AT_ONCE] = _labels(task.network, images)
    return found


def _moved(images: np.ndarray, moves: Sequence[str], point: np.ndarray) -> np.ndarray:
    low, high = warped_boxes(images, named(moves), point, point)
    middle: np.ndarray = 0.5 * (low + high)
    return middle


def _labels(network: Graph, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images.reshape(len(images), *network.input_shapes[0])).float()
    found: np.ndarray = evaluate(network, x).reshape(len(images), -1).argmax(1).numpy()
    return found
