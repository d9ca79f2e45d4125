"""What a stage brings to the loop, and what a step sees.

Which pictures a step sees, their timesteps, noise and flips are pure functions of (seed, step,
row): a resumed run continues as if it had never stopped, and however a step's rows are cut into
micro-batches of processes, together they are the same batch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..diffusion.noise import generator, normal
from ..networks.layers import Attention
from ..networks.unet import ResBlock
from ..pictures.images import to_float

PREVIEWED = 8  # pictures, or kinds of them, in a row or column of a sample sheet
HIDDEN = 0.1  # chance that a stage that `hides` labels takes one for unknown
PREFETCH = 3  # micro-batches prepared ahead, in threads


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the same for every stage."""

    images: int  # pictures to see in all
    batch_size: int  # pictures a step, over all processes and accumulated micro-batches
    accumulate: int  # micro-batches a step
    lr: float  # learning rate, reached after `warmup` steps
    warmup: int  # steps
    grad_clip: float  # largest gradient norm
    ema_images: int  # half-life of the weights' average in pictures, at most 5 % of those seen
    precision: str  # "no" (float32) or "bf16" (autocast)
    channels_last: bool
    compile: bool
    flip: bool  # mirror half of the pictures
    seed: int
    log_every: int  # steps
    save_every: int  # steps between checkpoints, each with model, metrics and sample sheet
    checkpoint_activations: bool = False  # compute them again for gradients: slower, less memory
    optimizer: str = "adam"  # or "muon"
    cooldown: float = 0.0  # share of the pictures, at the end, over which lr falls to zero
    fit: str = "crop"  # of pictures that aren't square
    names_sha: str = ""  # of those trained on and those held out: see `data.names_sha`
    held_out_sha: str = ""  # by these two, later commands know what was learnt from: see `Task`
    least_share: float = 0.0


class Data(Protocol):
    """Clean data by number: pictures as uint8 (N, C, H, W), or codes as float32 (N, D)."""

    def __len__(self) -> int: ...
    def stack(self, indices: Sequence[int]) -> Tensor: ...


@dataclass
class Stage:
    """What a stage brings to the loop. The callables are run with the averaged weights in place."""

    name: str
    objective: nn.Module  # forward(x_0, t, eps[, y]) → loss; what has requires_grad is trained
    source: Data
    density: Tensor  # (T,) chance of drawing each timestep; the objective makes up for it
    measure: Callable[[], dict[str, float]]  # metrics on held-out data
    preview: Callable[[], tuple[Tensor, int]]  # pictures of a sample sheet, and how many a row
    save: Callable[[dict[str, object]], None]  # writes the model; takes the run's summary
    shape: Sequence[int]  # of each row's eps
    labels: Tensor | None = None  # y (len(source), A), where the objective takes them
    settings: Mapping[str, object] = field(default_factory=dict)  # the objective's own, recorded
    guard: Callable[[], None] = lambda: None  # raises UsageError where a step would do harm
    hides: int = 0  # labels of a row that are hidden one by one, 1: all at once, 0: none

    def recorded(self) -> dict[str, object]:
        """Return the settings, and which labels the objective takes."""
        if self.labels is None:
            return dict(self.settings)
        numbers = self.labels.contiguous().numpy().tobytes()
        return {"labels_sha": hashlib.sha256(numbers).hexdigest()[:12], **self.settings}


class Rows(NamedTuple):
    """What the objective takes of one micro-batch."""

    x_0: Tensor  # float32; pictures in [-1, 1]
    t: Tensor  # (N,) int64
    eps: Tensor  # (N, *shape)
    y: Tensor | None = None


def checkpoint_activations(objective: nn.Module) -> None:
    """Have trained residual blocks and attention keep only their inputs and compute the rest again
    when gradients need it (Chen et al. 2016): a forward pass more for a part of the memory. The
    gradients are the same, dropout's masks included."""
    for block in objective.modules():
        trained = any(parameter.requires_grad for parameter in block.parameters())
        if isinstance(block, ResBlock | Attention) and trained:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = again  # type: ignore[method-assign]


def draw_batch(stage: Stage, options: TrainOptions, step: int, first: int, count: int) -> Rows:
    """Draw rows first … first+count-1 of a step's batch: a pure function of the arguments, and each
    row of (seed, step, row) alone."""
    rows, seed, total = slice(first, first + count), options.seed, options.batch_size
    numbers = order(len(stage.source), seed, step * total + first, count)
    clean = stage.source.stack(numbers.tolist())
    draws = generator(seed, "step", step)
    t = torch.multinomial(stage.density, total, replacement=True, generator=draws)[rows]
    mirrored = torch.rand(total, generator=draws)[rows] < 0.5
    streams = [generator(seed, "noise", step, row) for row in range(first, first + count)]
    eps = normal(streams, stage.shape)
    if clean.dtype == torch.uint8:
        if options.flip:
            clean = torch.where(mirrored[:, None, None, None], clean.flip(3), clean)
        clean = to_float(clean)
    y = None if stage.labels is None else stage.labels[numbers]
    if y is not None and stage.hides:
        hidden = torch.rand(total, stage.hides, generator=draws)[rows] < HIDDEN
        y = torch.where(hidden, -1, y)
    return Rows(clean, t, eps, y)


def prefetched(make: Callable[[int], Rows], start: int, stop: int) -> Iterator[Rows]:
    """Yield make(start) … make(stop - 1) in order, a few of them prepared ahead in threads."""
    numbers = iter(range(start, stop))
    with ThreadPoolExecutor(PREFETCH) as pool:
        waiting = deque(pool.submit(make, number) for number in islice(numbers, PREFETCH))
        while waiting:
            waiting.extend(pool.submit(make, number) for number in islice(numbers, 1))
            yield waiting.popleft().result()


@lru_cache(maxsize=2)  # asked for in every step, and 10 ms a million pictures to make
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def order(count: int, seed: int, position: int, length: int) -> Tensor:
    """Number the pictures at positions position … position+length-1 of an endless stream that goes
    through all `count` pictures in a new order each epoch; a pure function of its arguments."""
    chosen = []
    while length > 0:
        epoch, offset = divmod(position, count)
        chosen.append(_permutation(count, seed, epoch)[offset : offset + length])
        position, length = position + len(chosen[-1]), length - len(chosen[-1])
    return torch.cat(chosen)
