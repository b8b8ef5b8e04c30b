"""Branching vessels of the phantom's lungs.

A tree reaches randomly scattered points by short wiring and short paths to the root at once, which looks like
vessels (Cuntz et al. 2010, "One rule to grow them all", doi:10.1371/journal.pcbi.1000877, equation 1); its radii follow
Murray's law, r_parent^p = sum of r_child^p (Murray 1926, doi:10.1073/pnas.12.3.207; p = 3 there, here a little less).
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Tree", "grow_tree"]

_PATH_WEIGHT = 0.45
_MURRAY_POWER = 2.6


@dataclass(frozen=True)
class Tree:
    """Nodes of a tree, the root first.

    Args:
        points_mm: float (n, 3) as (x, y, z).
        parents: int (n,), the root's is itself.
        radii_mm: float (n,).
    """

    points_mm: np.ndarray
    parents: np.ndarray
    radii_mm: np.ndarray


def grow_tree(root_mm: np.ndarray, targets_mm: np.ndarray, *, leaf_radius_mm: float) -> Tree:
    """Connects every target to the root by greedily adding the cheapest branch.

    Args:
        root_mm: (3,).
        targets_mm: (n - 1, 3).
        leaf_radius_mm: radius of the last branches.
    """
    points = np.concatenate([root_mm[None], targets_mm])
    count = len(points)
    parents, path_mm = np.zeros(count, int), np.zeros(count)
    cost_mm = np.linalg.norm(points - points[0], axis=1)
    cost_mm[0] = np.inf
    order = [0]
    for _ in range(count - 1):
        node = int(np.argmin(cost_mm))
        parent = parents[node]
        path_mm[node] = path_mm[parent] + np.linalg.norm(points[node] - points[parent])
        order.append(node)
        cost_mm[node] = np.inf
        by_node = np.linalg.norm(points - points[node], axis=1) + _PATH_WEIGHT * path_mm[node]
        closer = (by_node < cost_mm) & np.isfinite(cost_mm)
        cost_mm[closer], parents[closer] = by_node[closer], node
    return Tree(points_mm=points, parents=parents, radii_mm=_murray_radii(parents, order, leaf_radius_mm))


def _murray_radii(parents: np.ndarray, order: list[int], leaf_radius_mm: float) -> np.ndarray:
    flow = np.zeros(len(parents))
    for node in reversed(order):
        flow[node] = max(flow[node], 1.0)
        if node:
            flow[parents[node]] += flow[node]
    return leaf_radius_mm * flow ** (1 / _MURRAY_POWER)
