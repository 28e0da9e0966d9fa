"""Codebook with nearest-code assignment, hard and soft lookup, trained by moving averages or by its gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed_ait import broadcast_from_first, sum_over_processes


class VectorQuantizer(nn.Module):
    """VQ codebook, trained by moving averages (van den Oord et al. 2017, appendix A.1) or by gradients (section 3.2).

    Args:
        num_codes: codebook size K.
        code_dim: width D of a code vector.
        decay: decay of the moving averages.
        epsilon: Laplace smoothing of the cluster sizes.
        learned: the codebook is a parameter, which a codebook loss on the code vectors moves; only the cluster sizes
            are averaged then.

    Attributes:
        deferred: in training mode collect statistics and leave the codebook to `apply_update`; for gradient
            accumulation, where one update must see several forward passes. Otherwise every forward pass updates.

    Buffers:
        codebook: (K, D), the code vectors; a parameter where they are learned.
        ema_cluster_size: (K,), smoothed moving average of the number of vectors assigned to each code.
        ema_sums: (K, D), moving average of the sums of those vectors; not where the codebook is learned.
    """

    codebook: Tensor
    ema_cluster_size: Tensor
    ema_sums: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, decay: float = 0.99, epsilon: float = 1e-5, learned: bool = False
    ):
        super().__init__()
        self.learned = learned
        self.decay = decay
        self.epsilon = epsilon
        self.deferred = False
        self._collected: list[tuple[Tensor, Tensor]] = []
        if learned:
            self.codebook = nn.Parameter(torch.empty(num_codes, code_dim))
        else:
            self.register_buffer("codebook", torch.empty(num_codes, code_dim))
        self.register_buffer("ema_cluster_size", torch.empty(num_codes))
        if not learned:
            self.register_buffer("ema_sums", torch.empty(num_codes, code_dim))

    @property
    def num_codes(self) -> int:
        """Codebook size K."""
        return self.codebook.shape[0]

    def assign(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code by squared Euclidean distance, in float32.

        Args:
            vectors: (..., D).

        Returns:
            (...) int64.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.detach().reshape(-1, vectors.shape[-1]).float()
            codes = self.codebook.detach().float()
            distance = flat.square().sum(1, keepdim=True) - 2 * flat @ codes.T + codes.square().sum(1)
            return distance.argmin(dim=1).view(vectors.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (..., D) of code indices (...)."""
        return F.embedding(codes, self.codebook)

    def soft_lookup(self, probabilities: Tensor) -> Tensor:
        """Expected code vectors (..., D) of code probabilities (..., K): the paper's soft token."""
        return probabilities @ self.codebook.to(probabilities.dtype)

    @torch.no_grad()
    def collect(self, vectors: Tensor, codes: Tensor) -> None:
        """Count vectors for the next `apply_update`.

        Args:
            vectors: (N, D) encoder outputs.
            codes: (N,) their codes under the present codebook.
        """
        assignment = F.one_hot(codes, self.num_codes).float()
        # Mixed precision would round the sums.
        with torch.autocast(vectors.device.type, enabled=False):
            self._collected.append((assignment.sum(0), assignment.T @ vectors.detach().float()))

    @torch.no_grad()
    def apply_update(self) -> None:
        """Move the codebook towards the vectors collected since the last update; nothing happens without any.

        A learned codebook is the optimiser's to move; its cluster sizes are averaged all the same. Counts and sums are
        added up over all processes, so that every process holds the codebook that one process with the whole batch
        would hold.
        """
        if not self._collected:
            return
        counts, sums = (sum_over_processes(torch.stack(x).sum(0)) for x in zip(*self._collected, strict=True))
        self._collected = []
        size = self.ema_cluster_size.lerp(counts, 1 - self.decay)
        total = size.sum()
        # The smoothed sizes are what the buffer keeps: the next update decays them, not the raw ones.
        size = (size + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        self.ema_cluster_size.copy_(size)
        if self.learned:
            return
        self.ema_sums.lerp_(sums, 1 - self.decay)
        self.codebook.copy_(self.ema_sums / size.unsqueeze(1))

    @torch.no_grad()
    def restart_dead_codes(
        self, vectors: Tensor, min_cluster_size: float, generator: torch.Generator | None = None
    ) -> int:
        """Move codes that hardly any vector is assigned to onto encoder outputs (random restart, Dhariwal et al. 2020).

        The original had no such step; short trainings need it, because codes that start far from the encoder's
        outputs are never chosen and so never move. All processes take what the first one draws.

        Args:
            vectors: (N, D) encoder outputs of the present batch, of all processes.
            min_cluster_size: codes whose moving-average cluster size is below this are moved.
            generator: source of randomness, on the CPU.

        Returns:
            How many codes were moved.
        """
        dead = (self.ema_cluster_size < min_cluster_size).nonzero().squeeze(1)
        picks = torch.randint(len(vectors), (len(dead),), generator=generator).to(vectors.device)
        chosen = broadcast_from_first(vectors[picks].to(self.codebook.dtype))
        self.codebook[dead] = chosen
        if not self.learned:
            self.ema_sums[dead] = chosen
        self.ema_cluster_size[dead] = 1.0
        return len(dead)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise, and in training mode update the codebook afterwards.

        Args:
            vectors: (..., D).

        Returns:
            The quantised vectors with a straight-through gradient to `vectors` (..., D); the code vectors (..., D),
            whose gradient goes to the codebook where that is learned; and the codes (...).
        """
        codes = self.assign(vectors)
        quantized = self.lookup(codes).to(vectors.dtype)
        if self.training:
            self.collect(vectors.reshape(-1, vectors.shape[-1]), codes.reshape(-1))
            if not self.deferred:
                self.apply_update()
        return vectors + (quantized - vectors).detach(), quantized, codes


def code_usage(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Share of the codebook that is used, and perplexity, of codes.

    The perplexity is the exponential of the entropy of the codes' frequencies: the number of codes, if all that occur
    were equally frequent.

    Args:
        codes: (...) int64, at least one.
        num_codes: codebook size K.

    Returns:
        A share in (0, 1] and a number in [1, K], scalars.
    """
    counts = torch.zeros(num_codes, device=codes.device).index_add_(
        0, codes.flatten(), torch.ones(codes.numel(), device=codes.device)
    )
    frequencies = counts / counts.sum()
    return (counts > 0).float().mean(), torch.special.entr(frequencies).sum().exp()
