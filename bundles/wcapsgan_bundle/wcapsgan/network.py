# SPDX-License-Identifier: Apache-2.0
"""The generator of the W-CapsuleGAN: one definition for nodules (64 px) and for lungs (256 px).

Samples are (B, 2, H, W): channel 0 the image, HU of the window [-1000, 400] mapped to [-1, 1]; channel 1 the soft mask
in [0, 1] (alpha of a nodule, lung mask of a lung). `category` (B,) int64 counts the configured categories;
`diameter_mm` (B,) is the requested disc diameter, 0 where there is none (lungs). There are no batch statistics: a
sample never depends on the others of its batch.
"""

import itertools
from dataclasses import dataclass

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .canvas import CanvasResampler
from .double_backward import NEGATIVE_SLOPE
from .modules import DiameterFeatures, NoiseFields, Smooth, StyledBlock, convolution_of, doublings, gaussian_taps

__all__ = ["FrameSettings", "Generator"]

# Sizes that the shipped weights have; other ones were not tried.
_MIN_SIZE = 4  # pixels of the coarsest features
_STYLE_DIM = 128
_CONDITION_DIM = 32  # numbers that embed the category, and as many for the diameter
_NOISE_DIM = 32  # latent numbers that choose the noise, see `NoiseFields`
_SHAPES = 256  # nodules of the training whose proportions a generator of cubes keeps
_FINE_NOISE = 0.1  # strength of the noise at the last resolution, at the start: that of a scanner is small
# The mask's logit beyond the canvas: a mask of 0.0003, which is 0 for all that reads it.
_OUTSIDE_LOGIT = -8.0
# With a flat background, HU are the nodule's own from a mask of 1 / support on, and fade to the level below it.
_SUPPORT = 4.0
# With a soft edge of 0.8 px the mask is 0.5 on the outline, 0.27 half a pixel outside it and 0.01 at two pixels: so HU
# are the nodule's own on the outline, half of it half a pixel outside, none at two.
_EDGED_SUPPORT = 2.0


@dataclass(frozen=True, kw_only=True)
class FrameSettings:
    """How nodules lie in their frame, the square that is returned; lungs need none of it but the spacing.

    Args:
        spacing_mm: of a pixel; None where it follows from the diameter (`FittedFrame`).
        use_canvas: draw on a canvas that the nodule fills whatever its size (see `CanvasResampler`), and in the frame,
            where pixels have their spacing, at the last resolution alone; needs diameters.
        flat_background: where the mask is 0 the image is a level, one number, as it is around the nodules of a cohort.
            Convolutions do not make an even surface by themselves.
        edge_px: standard deviation of the mask's soft edge in pixels, 0 for none. The soft masks of a cohort are
            filtered outlines; so are the generator's then, which has outlines to learn, and no soft edges.
    """

    spacing_mm: float | None
    use_canvas: bool
    flat_background: bool
    edge_px: float


class Generator(nn.Module):
    """Makes images with their soft masks from latents, of the requested category and diameter.

    A mapping network mixes latent, category and diameter into a style, from which the coarsest features start and
    which modulates each resolution (after Karras et al., 2019), so that a condition reaches every scale. Each
    resolution adds what it knows to the output of the coarser one, so that outlines are learnt before details, and
    gets noise of its own, so that no features have to imitate it.

    Args:
        latent_dim: of the standard normal prior.
        n_categories: at least 1.
        size: pixels of the square image, 4 times a power of two.
        channels: features at full resolution; doubled at each coarser level.
        max_width_multiplier: largest multiple of `channels`.
        frame: how nodules lie in the image.
        coarse_noise: strength of the noise at all resolutions but the last, at the start. Where outlines are made, it
            makes them differ from the first step on.
        spatial_dims: 2, or 3 for cubes.

    The buffer `diameter_quantiles` (n_categories, 101) holds the percentiles of the training diameters in mm; it
    travels with the weights, so that a sampler can draw diameters as they were in training. So do, in three dimensions,
    the proportions of training nodules: `shape_moments` (256, 3, 3), see `fitted.second_moments`.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        n_categories: int,
        size: int,
        channels: int,
        max_width_multiplier: int,
        frame: FrameSettings,
        coarse_noise: float = 1.0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.latent_dim, self.n_categories, self.size, self.spatial_dims = latent_dim, n_categories, size, spatial_dims
        self.use_canvas, self.outside_logit = frame.use_canvas, _OUTSIDE_LOGIT
        self.flat_background, self.support = frame.flat_background, _EDGED_SUPPORT if frame.edge_px else _SUPPORT
        levels = doublings(size, _MIN_SIZE)
        widths = [channels * min(2**level, max_width_multiplier) for level in range(levels, -1, -1)]  # coarse to fine
        convolution, singletons = convolution_of(spatial_dims)
        self.category = nn.Embedding(n_categories, _CONDITION_DIM)
        self.diameter = DiameterFeatures(_CONDITION_DIM)
        self.mapping = _mapping(latent_dim + 2 * _CONDITION_DIM, _STYLE_DIM)
        self.start = _start(_STYLE_DIM, widths[0], _MIN_SIZE, spatial_dims)
        last = levels - 1
        self.blocks = nn.ModuleList(
            StyledBlock(
                wide,
                narrow,
                _STYLE_DIM,
                enlarge=not (frame.use_canvas and level == last),
                noise_strength=_FINE_NOISE if level == last else coarse_noise,
                spatial_dims=spatial_dims,
            )
            for level, (wide, narrow) in enumerate(itertools.pairwise(widths))
        )
        self.to_frame = CanvasResampler(frame=size, canvas=size // 2, spacing_mm=frame.spacing_mm, to_frame=True)
        self.noise = nn.ModuleList(
            NoiseFields(min(_NOISE_DIM, latent_dim), _MIN_SIZE * 2**level, spatial_dims=spatial_dims)
            for level in range(1, levels + 1)
        )
        self.level = nn.Sequential(nn.Linear(_STYLE_DIM, 1), Rearrange(f"b c -> b c {singletons}"))  # of the background
        self.heads = nn.ModuleList(convolution(width, 2, kernel_size=3, padding=1) for width in widths[1:])
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear")
        self.smooth = Smooth(2, spatial_dims=spatial_dims)
        self.edge = Smooth(1, taps=gaussian_taps(frame.edge_px), spatial_dims=spatial_dims)
        self.register_buffer("diameter_quantiles", torch.zeros(n_categories, 101))
        if spatial_dims == 3:
            self.register_buffer("shape_moments", torch.eye(3).repeat(_SHAPES, 1, 1))

    def forward(self, latent: Tensor, category: Tensor | None = None, diameter_mm: Tensor | None = None) -> Tensor:
        """Generates samples.

        Args:
            latent: standard normal, shape (B, latent_dim).
            category: index, int64, shape (B,); the first category when None, as MONAI's tools call it.
            diameter_mm: disc diameter, shape (B,); 0 where it means nothing, the category's median when None.

        Returns:
            Images in [-1, 1] and masks in [0, 1], float32, shape (B, 2, size, size).
        """
        if category is None:
            category = torch.zeros(latent.shape[0], dtype=torch.long, device=latent.device)
        if diameter_mm is None:
            diameter_mm = self.diameter_quantiles[category, 50]
        conditions = torch.cat([latent, self.category(category), self.diameter(diameter_mm)], dim=1)
        style = self.mapping(conditions)
        x = self.start(style)
        y = torch.zeros(1)
        for level, (block, noise, head) in enumerate(zip(self.blocks, self.noise, self.heads, strict=True)):
            if self.use_canvas and level == len(self.blocks) - 1:
                x = self.to_frame(x, diameter_mm)
                y = self.to_frame(self.smooth(y.float()) - self.outside_logit, diameter_mm) + self.outside_logit
            elif level > 0:
                y = self.enlarge(y)
            x = block(x, style, noise(latent))
            y = head(x) if level == 0 else y + head(x)
        y = y.float() if self.use_canvas else self.smooth(y.float())
        image, mask = y[:, :1], self.edge(torch.sigmoid(y[:, 1:]))
        if self.flat_background:
            image = self.level(style).float() + (self.support * mask).clamp(max=1) * image
        return torch.cat([torch.tanh(image), mask], dim=1)


def _mapping(in_features: int, style_dim: int) -> nn.Sequential:
    """Two layers from latent and conditions to a style, whose initial values keep the latent at unit size."""
    layers = [nn.Linear(in_features, style_dim), nn.Linear(style_dim, style_dim)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=NEGATIVE_SLOPE)
    return nn.Sequential(layers[0], nn.LeakyReLU(NEGATIVE_SLOPE), layers[1], nn.LeakyReLU(NEGATIVE_SLOPE))


def _start(style_dim: int, channels: int, size: int, spatial_dims: int) -> nn.Sequential:
    """From a style to the coarsest features, (B, channels, size, size[, size])."""
    axes = " ".join("hwd"[:spatial_dims])
    return nn.Sequential(
        nn.Linear(style_dim, channels * size**spatial_dims),
        Rearrange(f"b (c {axes}) -> b c {axes}", **dict.fromkeys("hwd"[:spatial_dims], size)),
        nn.LeakyReLU(NEGATIVE_SLOPE),
    )
