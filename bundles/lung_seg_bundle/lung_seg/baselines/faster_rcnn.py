# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN + 3D DCNN: proposals on slices, a second stage that judges them, a 3D network that drops false ones.

After Ren et al. (2015) and, for nodules, Ding et al. (2017); all parts are small, for one processor core. The 3D part
sees cubes of neighbouring slices (`cubes.py`) and is trained in the same step.
"""

from typing import NamedTuple

import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou, non_max_suppression
from torch import Tensor, nn
from torch.nn import functional

from .dcnn import CubeNetwork
from .objects import Objects, ignored_share, objects_of
from .proposals import ProposalNetwork, clip_boxes, code_boxes
from .pyramid import STRIDES_PX, Pyramid
from .roi_align import level_of, roi_align

__all__ = ["DetectionTerms", "FasterRcnn3d", "SecondStage"]

_POOL = 5
_OVERLAP = 0.4  # a proposal that overlaps an object by less is background


class DetectionTerms(NamedTuple):
    """Scalars: anchors, their codes, proposals, their codes, cubes."""

    anchor: Tensor
    anchor_code: Tensor
    proposal: Tensor
    proposal_code: Tensor
    cube: Tensor

    def total(self) -> Tensor:
        """Their sum."""
        return self.anchor + self.anchor_code + self.proposal + self.proposal_code + self.cube


class SecondStage(nn.Module):
    """Judges and refines boxes by the features within them: (n, C, 5, 5) -> logits (n,), codes (n, 4).

    Args:
        width: C.
        hidden: units of the two dense layers.
    """

    def __init__(self, *, width: int = 48, hidden: int = 96) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * _POOL**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )
        self.out = nn.Linear(hidden, 5)
        self.coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.dense(pooled)).float()
        return out[:, 0], out[:, 1:]


class FasterRcnn3d(nn.Module):
    """The three networks.

    In training, `forward` takes a batch and cubes and gives the terms of the loss; `find` and `judge` apply it.

    Args:
        width: channels of the pyramid.
        most: finds a slice, at most.
    """

    def __init__(self, *, width: int = 48, most: int = 16) -> None:
        super().__init__()
        self.most = most
        self.pyramid = Pyramid(width=width)
        self.first = ProposalNetwork(width=width)
        self.second = SecondStage(width=width)
        self.cubes = CubeNetwork()

    def forward(
        self, image: Tensor, label: Tensor, labelled: Tensor, cubes: Tensor, is_nodule: Tensor
    ) -> DetectionTerms:
        """Terms of the loss.

        Args:
            image: (B, 1, H, W) in [-1, 1]; H and W are multiples of 16.
            label: (B, 1, H, W).
            labelled: (B, 2); images on which nobody drew nodules do not count.
            cubes: (n, 1, depth, side, side).
            is_nodule: (n,).
        """
        maps = self.pyramid(image)
        found = self.first(image, maps)
        objects = [objects_of(one[0]) for one in label]
        height, width = image.shape[-2:]
        proposed = self.first.boxes(found, height=height, width=width)
        cube = functional.binary_cross_entropy_with_logits(self.cubes(cubes).float(), is_nodule)
        return DetectionTerms(
            *self.first.terms(found, objects, label, labelled),
            *self._second_terms(maps, proposed, objects, label, labelled),
            cube,
        )

    def _pool(self, maps: list[Tensor], index: int, boxes: Tensor) -> Tensor:
        levels = level_of(boxes, levels=len(maps), reference_px=16.0)
        pooled = boxes.new_zeros(len(boxes), maps[0].shape[1], _POOL, _POOL)
        for level, (features, stride) in enumerate(zip(maps, STRIDES_PX, strict=True)):
            chosen = torch.nonzero(levels == level)[:, 0]
            if len(chosen):
                values = roi_align(features[index : index + 1], boxes[chosen], stride_px=stride, size=_POOL)
                pooled = pooled.index_copy(0, chosen, values)
        return pooled

    def _second_terms(
        self, maps: list[Tensor], proposed: list[Tensor], objects: list[Objects], label: Tensor, labelled: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled, targets, references, wanted = [], [], [], []
        for index in torch.nonzero(labelled[:, 1] > 0)[:, 0].tolist():
            drawn = objects[index].boxes.to(maps[0].device)
            boxes = torch.cat([proposed[index], drawn])
            overlap, match = (
                box_iou(boxes, drawn).max(dim=1) if len(drawn) else (boxes.new_zeros(len(boxes)), boxes[:, 0].long())
            )
            is_object = overlap >= _OVERLAP
            used = torch.nonzero(is_object | (ignored_share(label[index, 0], boxes) == 0))[:, 0]
            pooled.append(self._pool(maps, index, boxes[used]))
            targets.append(is_object[used].float())
            references.append(boxes[used])
            wanted.append(drawn[match[used]] if len(drawn) else boxes[used])
        if not pooled or not sum(map(len, pooled)):
            nothing = 0 * maps[0].float().sum()
            return nothing, nothing
        logits, codes = self.second(torch.cat(pooled))
        target = torch.cat(targets)
        on = target > 0
        codes_wanted = code_boxes(torch.cat(wanted)[on], torch.cat(references)[on], self.second.coder)
        error = functional.smooth_l1_loss(codes[on], codes_wanted, reduction="sum")
        # Objects weigh as much as three times as many background boxes.
        weight = torch.where(on, (len(target) / (3 * on.sum().clamp(min=1))).clamp(1, 8), 1.0)
        bce = functional.binary_cross_entropy_with_logits(logits, target, weight=weight)
        return bce, error / on.sum().clamp(min=1)

    @torch.inference_mode()
    def find(self, image: Tensor) -> tuple[list[Tensor], None]:
        """Nodules on each image (B, 1, H, W), any size.

        Returns:
            A list of (n, 4): row, column, diameter (pixels), probability; and None, since there is no map.
        """
        height, width = image.shape[-2:]
        down, right = (-size % STRIDES_PX[-1] for size in (height, width))
        image = functional.pad(image, (0, right, 0, down), mode="replicate")
        maps = self.pyramid(image)
        proposed = self.first.boxes(self.first(image, maps), height=height, width=width)
        return [self._refine(maps, index, boxes, height, width) for index, boxes in enumerate(proposed)], None

    def _refine(self, maps: list[Tensor], index: int, boxes: Tensor, height: int, width: int) -> Tensor:
        logits, codes = self.second(self._pool(maps, index, boxes))
        boxes = clip_boxes(self.second.coder.decode_single(codes, boxes), height=height, width=width)
        probability = torch.sigmoid(logits)
        kept = non_max_suppression(boxes, probability, 0.2, max_proposals=self.most)
        low, high = boxes[kept].split(2, dim=1)
        diameter = (high - low).prod(dim=1, keepdim=True).sqrt()
        # Edges count from the first pixel's edge, places from its middle.
        return torch.cat([(low + high) / 2 - 0.5, diameter, probability[kept, None]], dim=1)

    @torch.inference_mode()
    def judge(self, cubes: Tensor) -> Tensor:
        """Probability of nodule (n,) of cubes (n, 1, depth, side, side) in [-1, 1]."""
        return torch.sigmoid(self.cubes(cubes).float())
