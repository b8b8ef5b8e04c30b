# SPDX-License-Identifier: Apache-2.0
"""Between the frame of a sample, in mm, and a canvas that a nodule fills whatever its size.

Half of all nodules are smaller than 7 mm: ten pixels of a frame of 64. On the canvas the outline of each has the same
number of pixels, so that all of them teach and are taught alike.
"""

import torch
from torch import Tensor, nn

__all__ = ["CanvasResampler"]

# The weights of a generator belong to these two numbers; others need a new training.
_SPAN_DIAMETERS = 2.5  # side of the canvas; an ellipse of the nodule's area fits up to an axis ratio of 6
_MIN_SPAN_PX = 8.0  # pixels of the frame that a canvas shows at least: those of a nodule of 2.2 mm at 0.7 mm a pixel
_MARGIN_PX = 8  # zeros around the canvas within the filter's reach, so that what is placed fades at the border


class CanvasResampler(nn.Module):
    """Resamples centred square frames to canvases, or back, by a factor that follows from the diameter.

    The filter is linear interpolation where pixels are made, and a triangle as wide as the step where they are lost, so
    that nothing aliases. It is a matrix an axis: unlike `grid_sample`, it has the second derivative that a gradient
    penalty needs. A diameter of 0 stands for none (lungs): the canvas shows the whole frame.

    Args:
        frame: pixels of the frame's side.
        canvas: pixels of the canvas' side.
        spacing_mm: of a pixel of the frame; None where nodules fill it already: the canvas shows the whole frame.
        to_frame: from canvas to frame, with zeros beyond the canvas.
    """

    def __init__(self, *, frame: int, canvas: int, spacing_mm: float | None, to_frame: bool = False) -> None:
        super().__init__()
        self.frame, self.canvas, self.spacing_mm, self.to_frame = frame, canvas, spacing_mm, to_frame
        self.span_diameters, self.min_span, self.margin = _SPAN_DIAMETERS, _MIN_SPAN_PX, _MARGIN_PX

    def matrices(self, diameter_mm: Tensor) -> Tensor:
        """Weights of diameters in mm (B,), shape (B, pixels out, pixels in)."""
        n_out, n_in = (self.frame, self.canvas) if self.to_frame else (self.canvas, self.frame)
        span = self.span(diameter_mm.float())[:, None, None]
        step = self.canvas / span if self.to_frame else span / self.canvas  # pixels in, a pixel out
        places = torch.arange(n_out, device=span.device)[None, :, None] - (n_out - 1) / 2
        margin = self.margin if self.to_frame else 0
        sources = torch.arange(-margin, n_in + margin, device=span.device) - (n_in - 1) / 2
        weights = (1 - (places * step - sources).abs() / step.clamp(min=1.0)).clamp(min=0.0)
        weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)  # 0 where nothing is within reach
        return weights[:, :, margin : margin + n_in]

    def span(self, diameter_mm: Tensor) -> Tensor:
        """Pixels of the frame that a canvas shows, (B,)."""
        whole = torch.full_like(diameter_mm, float(self.frame))
        if self.spacing_mm is None:
            return whole
        span = (self.span_diameters * diameter_mm / self.spacing_mm).clamp(self.min_span, float(self.frame))
        return torch.where(diameter_mm > 0, span, whole)

    def forward(self, x: Tensor, diameter_mm: Tensor) -> Tensor:
        """Resamples (B, C, n, n[, n]) for diameters in mm (B,), to (B, C, m, m[, m])."""
        weights = self.matrices(diameter_mm).to(x.dtype)
        x = x.movedim(1, -1)
        for _ in range(x.dim() - 2):  # the first axis each time, which then goes behind the others
            rows = torch.bmm(weights, x.flatten(2))
            x = rows.unflatten(2, list(x.shape[2:])).movedim(1, -2)
        return x.movedim(-1, 1)
