# SPDX-License-Identifier: Apache-2.0
"""A pool of earlier fakes, so that a discriminator does not forget what a generator used to do.

After Shrivastava et al. (2017), as in CycleGAN (Zhu et al., 2017, section 4).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["ImageHistory"]


class ImageHistory:
    """Gives, for each fake, the fake itself or, as often, an earlier one whose place it takes.

    Draws come from torch's global generator, which `resume.RandomState` keeps; the images are part of the checkpoint.

    Args:
        capacity: images kept; 0 gives each batch back as it came.
    """

    def __init__(self, capacity: int = 50) -> None:
        if capacity < 0:
            raise ValueError(f"An image history needs a capacity of at least 0, got {capacity}.")
        self.capacity = capacity
        self.images: list[Tensor] = []

    def __call__(self, fakes: Tensor) -> Tensor:
        """Fakes for the discriminator, same shape (B, 1, H, W), without gradient."""
        return torch.stack([self._exchange(fake) for fake in fakes.detach().clone()])

    def _exchange(self, fake: Tensor) -> Tensor:
        if len(self.images) < self.capacity:
            self.images.append(fake)
            return fake
        if self.capacity == 0 or torch.rand(()) < 0.5:
            return fake
        place = int(torch.randint(self.capacity, ()))
        earlier, self.images[place] = self.images[place], fake
        return earlier

    def state_dict(self) -> dict[str, Any]:
        """The images, in types that `torch.load(weights_only=True)` accepts."""
        return {"images": [image.clone() for image in self.images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the images of `state_dict`; what exceeds the capacity is dropped."""
        self.images = [image.clone() for image in state["images"]][: self.capacity]
