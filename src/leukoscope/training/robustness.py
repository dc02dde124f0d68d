"""Group distributionally robust training: the loss turns to the subjects that do worst.

After Sagawa et al. 2020 (arXiv:1911.08731, algorithm 1). Subjects, not cells, are what a classifier must generalise
over; a mean over cells lets it give up on a person whose cells look unlike the others of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch


class SubjectWeights:
    """A weight for every training subject that grows, within its class, while its loss is high.

    Classes keep equal shares throughout: the prior that training puts into a network stays the one that is taken out of
    it afterwards (`restore_class_frequencies`).

    Attributes:
        weights: (G,) float32, sum 1; each class shares equally, and at the start in it each subject.
    """

    def __init__(self, labels: np.ndarray, subjects: Sequence[str], step_size: float):
        """Args:
        labels, subjects: of the training cells; one subject in two classes counts as two.
        step_size: the η of the paper.
        """
        pairs = sorted(set(zip(labels.tolist(), subjects, strict=True)))
        self._index = {pair: i for i, pair in enumerate(pairs)}
        per_class = np.bincount([label for label, _ in pairs])
        start = torch.tensor([1.0 / per_class[label] for label, _ in pairs], dtype=torch.float32)
        self._class_of = torch.tensor([label for label, _ in pairs])
        self.step_size, self.weights = step_size, start / start.sum()

    def groups(self, labels: np.ndarray, subjects: Sequence[str]) -> torch.Tensor:
        """(B,) which weight each cell belongs to."""
        return torch.tensor([self._index[pair] for pair in zip(labels.tolist(), subjects, strict=True)])

    def loss(
        self,
        cell_losses: torch.Tensor,
        groups: torch.Tensor,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    ) -> torch.Tensor:
        """Raise the weights of the batch's worst subjects, then weigh the batch's loss by them.

        Args:
            cell_losses: (B,).
            groups: (B,), from `groups`, on the device of the losses.
            total: adds (2, G) sums and counts over processes, so that all keep the same weights.

        Returns:
            () the loss to go down: the mean over the subjects in the batch by their weights.
        """
        self.weights = self.weights.to(cell_losses.device)
        zeros = torch.zeros_like(self.weights)
        sums = zeros.index_add(0, groups, cell_losses)
        counts = zeros.index_add(0, groups, torch.ones_like(cell_losses))
        all_sums, all_counts = total(torch.stack([sums.detach(), counts]))
        raised = self.weights * torch.exp(self.step_size * all_sums / all_counts.clamp(min=1))
        class_of = self._class_of.to(raised.device)
        of_class = torch.zeros(int(class_of.max()) + 1, device=raised.device).index_add(0, class_of, raised)
        self.weights = raised / of_class[class_of] / (of_class > 0).sum()
        present = self.weights * (counts > 0)
        return (present * sums / counts.clamp(min=1)).sum() / present.sum()
