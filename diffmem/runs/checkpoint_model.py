"""The trained model of a checkpoint, whose images are made again and compared."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffmem.cells import Cell, Scoring
from diffmem.data import training_set
from diffmem.measures import NO_SPACES, Comparison, Evidence, Spaces
from diffmem.models import ALONE, DenoiserFunction
from diffmem.networks import UntrainedModel
from diffmem.runs.kept_models import Made, denoiser_of, find_model, images_of
from diffmem.store import Store

Device = torch.device | str


class CheckpointModel:
    """The trained model of a checkpoint, or the denoiser that follows from the training images, and these."""

    def __init__(self, cell: Cell, store: Store, epoch: int, device: Device, spaces: Spaces = NO_SPACES) -> None:
        self.spaces = spaces
        self.data = data = training_set(cell)
        self.cell, self.device = cell, device
        self.images = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
        self.made: Made | None = None
        self.denoiser: DenoiserFunction
        if isinstance(cell.M, UntrainedModel):
            labels = None if data.labels is None else torch.from_numpy(data.labels).to(device)
            self.denoiser = cell.M.from_images(self.images.float() / 127.5 - 1, labels, count=cell.labels)
        else:
            kept = find_model(store, cell.cell_id, epoch)
            self.made, self.denoiser = kept.made, denoiser_of(kept, device)

    def evidence(
        self, count: int, scoring: Scoring, measures: Sequence[str], *, pairs: int = 0, keep: int = 0
    ) -> tuple[Evidence, Tensor]:
        """Generate the first `count` images as a scoring has them, and compare them with the training set.

        The first `keep` of them come too.
        """
        keep = min(keep, count)
        comparison = Comparison(self.images, pairs=pairs, others=measures, spaces=self.spaces, keep=keep)
        cell = self.cell.model_copy(update={"score": scoring})
        for batch in images_of(self.denoiser, cell, count, device=self.device):
            comparison.add(_on(batch.images, self.device))
        comparison.gather(ALONE, count)
        return comparison.evidence(), comparison.images


def _on(images: Tensor, device: Device) -> Tensor:
    return images.to(device)
