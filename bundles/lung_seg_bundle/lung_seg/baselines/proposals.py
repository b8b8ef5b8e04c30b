# SPDX-License-Identifier: Apache-2.0
"""The first stage of Faster R-CNN (Ren et al., 2015): a region proposal network on a pyramid of features.

Anchors, their matching to objects (ATSS, Zhang et al., 2020), the coding of boxes and non-maximum suppression are
MONAI's.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from monai.data.box_utils import non_max_suppression
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional

from .objects import Objects, ignored_share

__all__ = ["ProposalNetwork", "Proposals", "clip_boxes", "code_boxes"]

_ANCHORS_PX = ((6, 6), (10, 10))  # at the finest level; twice and four times that at the others
_BEFORE_SUPPRESSION = 128


class Proposals(NamedTuple):
    """What the first stage says of a batch: logits (B, A), codes (B, A, 4), anchors (A, 4), places a level."""

    logits: Tensor
    codes: Tensor
    anchors: Tensor
    places: list[int]


def clip_boxes(boxes: Tensor, *, height: int, width: int, least_px: float = 1.0) -> Tensor:
    """Boxes (n, 4) within the image, with sides of at least `least_px`."""
    limits = torch.tensor([height, width, height, width], device=boxes.device)
    clipped = torch.minimum(boxes.clamp(min=0), limits)
    low = torch.minimum(clipped[:, :2], limits[:2] - least_px)
    return torch.cat([low, torch.maximum(clipped[:, 2:], low + least_px)], dim=1)


def code_boxes(boxes: Tensor, references: Tensor, coder: BoxCoder) -> Tensor:
    """Codes (n, 4) of boxes relative to references; empty where there are none."""
    return coder.encode_single(boxes, references) if len(boxes) else boxes.new_zeros(0, 4)


class ProposalNetwork(nn.Module):
    """Scores and refines anchors at each place of each map.

    Args:
        width: channels of the maps.
        positives: anchors that count as objects, at most, an image.
        proposals: boxes that come out, at most, an image.
        overlap: intersection over union above which the less probable box is dropped.
    """

    def __init__(self, *, width: int = 48, positives: int = 16, proposals: int = 32, overlap: float = 0.5) -> None:
        super().__init__()
        self.proposals = proposals
        self.overlap = overlap
        shapes = len(_ANCHORS_PX)
        self.conv = nn.Sequential(Conv[Conv.CONV, 2](width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.score = Conv[Conv.CONV, 2](width, shapes, 1)
        self.code = Conv[Conv.CONV, 2](width, 4 * shapes, 1)
        nn.init.constant_(self.score.bias, -4.0)  # objects are rare
        self.anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=(1, 2, 4), base_anchor_shapes=_ANCHORS_PX)
        self.matcher = ATSSMatcher(num_candidates=4, center_in_gt=False)
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.sampler = HardNegativeSampler(batch_size_per_image=4 * positives, positive_fraction=0.25, min_neg=16)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Proposals:
        features = [self.conv(level) for level in maps]
        logits = [rearrange(self.score(x), "b a h w -> b (h w a)") for x in features]
        codes = [rearrange(self.code(x), "b (a k) h w -> b (h w a) k", k=4) for x in features]
        anchors = self.anchors(image, [level.float() for level in maps])[0]
        places = [level.shape[-2] * level.shape[-1] for level in maps]
        return Proposals(torch.cat(logits, dim=1).float(), torch.cat(codes, dim=1).float(), anchors, places)

    @torch.no_grad()
    def boxes(self, found: Proposals, *, height: int, width: int) -> list[Tensor]:
        """The most probable refined anchors of each image, (n, 4) each, without those that overlap."""
        chosen = []
        for logits, codes in zip(found.logits, found.codes, strict=True):
            best = logits.topk(min(_BEFORE_SUPPRESSION, len(logits)))
            boxes = self.coder.decode_single(codes[best.indices], found.anchors[best.indices])
            boxes = clip_boxes(boxes, height=height, width=width)
            kept = non_max_suppression(boxes, best.values, self.overlap, max_proposals=self.proposals)
            chosen.append(boxes[kept])
        return chosen

    def terms(self, found: Proposals, objects: list[Objects], label: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the sampled anchors and smooth L1 of those on objects, scalars.

        Images without drawn nodules do not count; anchors that touch pixels nobody looked at are never negatives.

        Args:
            found: of the batch.
            objects: of each image.
            label: (B, 1, H, W).
            labelled: (B, 2).
        """
        scores, codes = [], []
        for index in torch.nonzero(labelled[:, 1] > 0)[:, 0].tolist():
            boxes = objects[index].boxes.to(found.anchors)
            matches = self._match(boxes, found, label[index, 0])
            positive, negative = self.sampler.select_samples_per_img(
                (matches >= 0).long() - (matches == self.matcher.BETWEEN_THRESHOLDS).long(),
                found.logits[index].detach().sigmoid(),
            )
            used = torch.nonzero(positive + negative)[:, 0]
            target = (matches[used] >= 0).float()
            scores.append(
                functional.binary_cross_entropy_with_logits(found.logits[index, used], target, reduction="none")
            )
            on = torch.nonzero(positive)[:, 0]
            wanted = code_boxes(boxes[matches[on]], found.anchors[on], self.coder)
            codes.append(functional.smooth_l1_loss(found.codes[index, on], wanted, beta=0.1, reduction="none").sum(1))
        return _mean(scores, found.logits), _mean(codes, found.codes)

    def _match(self, boxes: Tensor, found: Proposals, label: Tensor) -> Tensor:
        """Index of each anchor's object, or the matcher's numbers for background and for what does not count."""
        _, matches = self.matcher(boxes, found.anchors, found.places, len(_ANCHORS_PX))
        matches = matches.to(found.anchors.device)
        unseen = (ignored_share(label, found.anchors) > 0) & (matches < 0)
        return torch.where(unseen, self.matcher.BETWEEN_THRESHOLDS, matches)


def _mean(parts: list[Tensor], like: Tensor) -> Tensor:
    """Mean of all values; 0, with a gradient of 0, when there is none."""
    joined = torch.cat(parts) if parts else like.new_zeros(0)
    return joined.mean() if len(joined) else 0 * like.sum()
