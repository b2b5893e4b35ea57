"""The gradient of t-SNE with its repulsion on a grid, by splines and a Fourier transform, for openTSNE.

    TSNE(negative_gradient_method=SplineGradient(), ...)

Repulsion is a convolution of all points with (1 + d²)^-2 (Linderman et al. 2019, "Fast interpolation-based t-SNE"):
points are spread to a grid, the grid is transformed, multiplied, transformed back, and read at the points. Here the
spreading and reading are cubic B-splines divided out of the kernel's spectrum (as in particle-mesh Ewald, Essmann et
al. 1995), in place of piecewise parabolas: a grid of SPACING 0.5 then has the error of Barnes-Hut at its usual angle
(1.3 % of the mean force), where openTSNE's grid of 1/3 has 3.4 %. Attraction is openTSNE's own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from openTSNE import _tsne
from openTSNE.tsne import kl_divergence_bh
from scipy.fft import next_fast_len
from torch import Tensor

SPACING = 0.5  # of the grid, in units of the map, where the kernel's width is 1
LEAST_CELLS = 50  # along the longer side of a small map
FEWEST = 1000  # points; fewer go by Barnes-Hut, which is quick then, and their few close pairs decide the sum
MARGIN = 4  # nodes beyond the outermost points: a cubic spline covers four


class SplineGradient:
    """openTSNE's objective function for a map being fitted; points placed into a finished one go by Barnes-Hut.

    The kernel's spectrum is kept for as long as the grid stays the same.
    """

    def __init__(self) -> None:
        self._grid: tuple[int, int, float] | None = None
        self._spectrum = torch.empty(0)

    def __call__(
        self,
        embedding: np.ndarray,
        P: Any,
        dof: float,
        reference_embedding: np.ndarray | None = None,
        should_eval_error: bool = False,
        n_jobs: int = 1,
        **other: Any,
    ) -> tuple[float, np.ndarray]:
        """Kullback-Leibler divergence (0 unless should_eval_error), gradient [N, 2] of a map [N, 2]; P: [N, N] CSR."""
        if reference_embedding is not None or dof != 1 or len(embedding) < FEWEST:
            told = {"reference_embedding": reference_embedding, "should_eval_error": should_eval_error}
            return kl_divergence_bh(embedding, P, dof, n_jobs=n_jobs, **told, **other)
        forces, total = self.repulsion(torch.from_numpy(np.array(embedding, np.float32)))
        gradient = -forces.double().numpy() / total
        attraction = (P.indices, P.indptr, P.data, embedding, embedding, gradient, dof)  # added to the gradient
        sum_p, error = _tsne.estimate_positive_gradient_nn(
            *attraction, num_threads=n_jobs, should_eval_error=should_eval_error
        )
        return error + sum_p * math.log(total) if should_eval_error else error, gradient

    def repulsion(self, y: Tensor) -> tuple[Tensor, float]:
        """Of points y [N, 2]: sum_j (y_i - y_j) / (1 + d_ij²)² [N, 2], and the sum of 1 / (1 + d_ij²) over i != j."""
        y = y - y.mean(0)
        low = y.min(0).values
        span = (y.max(0).values - low).tolist()
        spacing = _spacing(max(span))
        nodes, other_nodes = (math.ceil((side / spacing + MARGIN) / 16) * 16 for side in span)
        place = (y - low) / spacing + 1
        cell = place.floor()
        spline = _cubic_spline(place - cell)  # (N, 2, 4)
        near = cell.long()[..., None] + torch.arange(-1, 3)  # (N, 2, 4) nodes along either axis
        node = (near[:, 0, :, None] * other_nodes + near[:, 1, None, :]).flatten(1)  # (N, 16)
        weight = (spline[:, 0, :, None] * spline[:, 1, None, :]).flatten(1)

        charges = torch.cat([torch.ones(1, len(y)), y.T])  # (3, N): 1, x, y
        size = nodes * other_nodes
        spread = [torch.bincount(node.flatten(), (weight * each[:, None]).flatten(), size) for each in charges]
        grid = self._convolved(torch.stack(spread).view(3, nodes, other_nodes), spacing).reshape(3, size)
        mass, *along = ((each.take(node) * weight).sum(1) for each in grid)  # (N) each
        along = torch.stack(along, dim=1)
        # 1 / (1 + d²) is (1 + d²) times the kernel; points also met themselves, at a distance of 0
        total = mass.double() * (1 + 2 * y.double().square().sum(1)) - 2 * (y * along).double().sum(1)
        return y * mass[:, None] - along, float(total.sum()) - len(y)

    def _convolved(self, grid: Tensor, spacing: float) -> Tensor:
        """Charges [3, n, m] on the grid convolved with the kernel, without the spline's own smoothing."""
        _, n, m = grid.shape
        padded = [next_fast_len(2 * side, real=True) for side in (n, m)]  # no point meets another's periodic image
        if self._grid != (n, m, spacing):
            self._grid, self._spectrum = (n, m, spacing), _spectrum(padded, spacing)
        # axis by axis, as half of the padded grid is zero and half of the result is not wanted; along rows in memory
        waves = torch.fft.rfft(grid, padded[1]).transpose(1, 2).contiguous()  # (3, m', n)
        waves = torch.fft.ifft(torch.fft.fft(waves, padded[0]).mul_(self._spectrum))[..., :n]
        return torch.fft.irfft(waves.transpose(1, 2).contiguous(), padded[1])[..., :m]


def _spacing(span: float) -> float:
    """SPACING, or for a small map a step of a coarse scale that gives LEAST_CELLS, so that the grid seldom changes."""
    finest = max(span, 1e-12) / LEAST_CELLS
    return SPACING if finest >= SPACING else 2.0 ** (math.floor(4 * math.log2(finest)) / 4)


def _cubic_spline(f: Tensor) -> Tensor:
    """Weights [..., 4] of the nodes at -1, 0, 1, 2 for a point at f in [0, 1) [...]."""
    g = 1 - f
    middle = [(4 - 6 * each.square() + 3 * each**3) / 6 for each in (f, g)]
    return torch.stack([g**3 / 6, *middle, f**3 / 6], dim=-1)


def _spectrum(padded: list[int], spacing: float) -> Tensor:
    """Transform [m / 2 + 1, n] of the kernel on a periodic grid, over that of spreading and of reading by splines."""
    steps = [torch.arange(side, dtype=torch.float64) for side in padded]
    away = [torch.minimum(step, side - step) * spacing for step, side in zip(steps, padded, strict=True)]
    kernel = (1 + away[0].square()[:, None] + away[1].square()).pow(-2)
    spline = [(2 + torch.cos(2 * math.pi * step / side)) / 3 for step, side in zip(steps, padded, strict=True)]
    spectrum = torch.fft.rfft2(kernel).real  # real, as the kernel is symmetric
    return (spectrum / (spline[0][:, None] * spline[1][: spectrum.shape[1]]).square()).T.float().contiguous()
