"""The training loop of every stage: accelerate places and synchronises, everything else is here.

Which pictures a step sees, their timesteps, noise and flips are pure functions of (seed, step,
row): a resumed run continues as if it had never stopped, and however a step's rows are cut into
micro-batches of processes, together they are the same batch. Only dropout's masks, which a device
draws, are functions of (seed, step, shard), where a shard is one micro-batch of one process.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..diffusion.noise import generator, normal
from ..engine.computing import check_compiler
from ..errors import PdaeError, UsageError
from .data import order
from .memory import checkpoint_activations
from .peers import PeerLost, Peers, reaching
from .state import EMA, append_log, load_state, read_facts, save_state, trim_log

PREFETCH = 3  # micro-batches prepared ahead, in threads
# Options that a resumed run may change.
FREE_TO_CHANGE = {"images", "accumulate", "log_every", "save_every", "checkpoint_activations"}


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the same for every stage."""

    images: int  # pictures to see in all
    batch_size: int  # pictures a step, over all processes and accumulated micro-batches
    accumulate: int  # micro-batches a step
    lr: float  # Adam's learning rate, reached after `warmup` steps
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


class Source(Protocol):
    """Clean data by number: pictures as uint8 (N, C, H, W), or codes as float32 (N, D)."""

    def __len__(self) -> int: ...
    def stack(self, indices: Sequence[int]) -> Tensor: ...


@dataclass
class Stage:
    """What a stage brings to the loop. The callables are run with the averaged weights in place."""

    name: str
    objective: nn.Module  # forward(x_0, t, eps[, y]) → loss; what has requires_grad is trained
    source: Source
    density: Tensor  # (T,) chance of drawing each timestep; the objective makes up for it
    measure: Callable[[], dict[str, float]]  # metrics on held-out data
    preview: Callable[[Path], None]  # writes a sample sheet (path without suffix)
    save: Callable[[dict[str, object]], None]  # writes the model; takes the run's summary
    shape: Sequence[int]  # of each row's eps
    labels: Tensor | None = None  # y (len(source), A), where the objective takes them


@dataclass(frozen=True)
class Batch:
    """One micro-batch: x_0 float32 (pictures in [-1, 1]), t (N,) int64, eps like x_0 or what the
    objective makes of it; labels y."""

    x_0: Tensor
    t: Tensor
    eps: Tensor
    y: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """What the objective takes."""
        return [self.x_0, self.t, self.eps] + ([] if self.y is None else [self.y])

    def pinned(self) -> Batch:
        """The same in memory that a GPU copies from while it computes."""
        return Batch(*(part.pin_memory() for part in self.parts()))


def draw_batch(
    source: Source,
    density: Tensor,
    shape: Sequence[int],
    options: TrainOptions,
    step: int,
    first: int,
    count: int,
    labels: Tensor | None = None,
) -> Batch:
    """Rows first … first+count-1 of a step's batch, with eps of `shape` each: a pure function of
    its arguments, and each row of (seed, step, row) alone."""
    rows, seed, total = slice(first, first + count), options.seed, options.batch_size
    numbers = order(len(source), seed, step * total + first, count)
    clean = source.stack(numbers.tolist())
    draws = generator(seed, "step", step)
    t = torch.multinomial(density, total, replacement=True, generator=draws)[rows]
    mirrored = torch.rand(total, generator=draws)[rows] < 0.5
    streams = [generator(seed, "noise", step, row) for row in range(first, first + count)]
    eps = normal(streams, shape)
    if clean.dtype == torch.uint8:
        if options.flip:
            clean = torch.where(mirrored[:, None, None, None], clean.flip(3), clean)
        clean = clean.float() / 127.5 - 1
    return Batch(clean, t, eps, None if labels is None else labels[numbers])


def prefetched(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """make(start) … make(stop - 1) in order, a few of them prepared ahead in threads."""
    with ThreadPoolExecutor(PREFETCH) as pool:
        waiting: deque[Future[Batch]] = deque()
        for number in range(start, stop + PREFETCH):
            if number < stop:
                waiting.append(pool.submit(make, number))
            if waiting and (len(waiting) > PREFETCH or number >= stop):
                yield waiting.popleft().result()


@contextlib.contextmanager
def interrupted_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that no step is cut in two; the yielded function says
    whether one came."""
    caught: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    wanted = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, lambda n, frame: caught.append(n)) for s in wanted if main}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """One stage's run in a folder: `RUN/training/STAGE.safetensors`, `.jsonl` and sample sheets."""

    def __init__(
        self, stage: Stage, options: TrainOptions, folder: Path, cpu: bool = False
    ) -> None:
        self.stage, self.options, self.folder = stage, options, folder / "training"
        self.accelerator = Accelerator(
            mixed_precision="no",
            cpu=cpu or not torch.accelerator.is_available(),  # else each process would train alone
            step_scheduler_with_optimizer=False,
        )
        self.peers = Peers(self.accelerator)
        if options.channels_last and self.accelerator.device.type == "cpu":
            # GroupNorm's backward pass in channels last ends in a segmentation fault: torch 2.13.
            raise UsageError(
                "--channels-last crashes torch on a CPU, and gains nothing there; leave "
                "--channels-last out"
            )
        shards = self.peers.count * options.accumulate
        if options.batch_size % shards:
            raise UsageError(
                f"--batch-size {options.batch_size} is not a multiple of {shards} "
                f"({self.peers.count} processes x {options.accumulate} micro-batches)"
            )
        self.micro_batch = options.batch_size // shards
        self.steps = -(-options.images // options.batch_size)
        objective = stage.objective.to(self.accelerator.device)
        if options.channels_last:
            objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.checkpoint_activations:
            checkpoint_activations(objective)
        self.parameters = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self.ema = EMA(self.parameters, options.ema_images)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=options.lr, fused=True)
        self.step = self._resume()
        if not self.peers.same(self.step):
            raise UsageError(
                f"the processes don't see the same state in {self.folder}; choose an -o on a disk "
                "that all of them share"
            )
        self.objective = self.accelerator.prepare_model(objective)
        if options.compile:
            # Parameters, their average and the model are named and saved from `stage.objective`,
            # so the wrapper's own names appear nowhere.
            check_compiler(self.accelerator.device)
            self.objective = torch.compile(self.objective)

    def autocast(self) -> torch.autocast:
        """Where the precision is bf16: matrix products and convolutions in bfloat16."""
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    @property
    def state_path(self) -> Path:
        return self.folder / f"{self.stage.name}.safetensors"

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.stage.name}.jsonl"

    def _resume(self) -> int:
        """Continue from the folder's state, if there is one; return the step to start at."""
        if not self.state_path.exists():
            return 0
        step, before = read_facts(self.state_path)
        now = asdict(self.options)
        changed = [k for k in now if k not in FREE_TO_CHANGE and before.get(k) != now[k]]
        if changed:
            said = ", ".join(f"{k} {before.get(k)} → {now[k]}" for k in changed)
            raise UsageError(
                f"{self.folder.parent} was begun with other options ({said}); "
                "use those again, or start in another folder with --init-from"
            )
        load_state(self.state_path, self.parameters, self.ema, self.optimizer)
        return step

    def train(self, report: Callable[[dict[str, object]], None]) -> None:
        """Train up to `options.images`, saving on interruption; `report` gets each log line."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            trim_log(self.log_path, self.step)
        with interrupted_between_steps() as interrupted:
            try:
                self._train(report, interrupted)
            except KeyboardInterrupt:
                if self.optimizer.state:  # else there is nothing yet
                    self._save(report, full=False)
                raise
            except PeerLost:
                raise
            except PdaeError:
                self.peers.fail()
                raise

    def _train(
        self, report: Callable[[dict[str, object]], None], interrupted: Callable[[], bool]
    ) -> None:
        begun, begun_step, losses = time.perf_counter(), self.step, []
        for group in self.batches():
            self._check(interrupted)
            losses.append(self.train_step(group))
            last = self.step == self.steps
            if self.step % self.options.log_every == 0 or last:
                images = (self.step - begun_step) * self.options.batch_size
                self._log(
                    report,
                    loss=self.peers.mean(torch.stack(losses).mean().item()),
                    images_per_second=images / (time.perf_counter() - begun),
                )
                losses, begun, begun_step = [], time.perf_counter(), self.step
            if self.step % self.options.save_every == 0 or last:
                self._save(report)
                begun, begun_step = time.perf_counter(), self.step
        self._check(interrupted)

    def _check(self, interrupted: Callable[[], bool]) -> None:
        if self.peers.agree(interrupted()):
            raise KeyboardInterrupt

    def batches(self) -> Iterator[list[Batch]]:
        """Each step's micro-batches of this process."""
        options, accumulate = self.options, self.options.accumulate
        stage = self.stage
        device = self.accelerator.device.type

        def make(number: int) -> Batch:
            step, micro = divmod(number, accumulate)
            first = (self.peers.rank * accumulate + micro) * self.micro_batch
            rows = first, self.micro_batch
            batch = draw_batch(
                stage.source, stage.density, stage.shape, options, step, *rows, stage.labels
            )
            return batch.pinned() if device == "cuda" else batch

        first, last = self.step * accumulate, self.steps * accumulate
        # On a CPU the threads would take turns with the network's own, which costs far more than
        # the few milliseconds that a batch takes.
        inline = device == "cpu"
        stream = (make(n) for n in range(first, last)) if inline else prefetched(make, first, last)
        with contextlib.closing(stream):  # type: ignore[type-var]
            for _ in range(self.step, self.steps):
                yield [next(stream) for _ in range(accumulate)]

    def train_step(self, group: list[Batch]) -> Tensor:
        """One optimiser step over this process's micro-batches; returns the mean loss, (), on the
        device: nothing here waits for it."""
        options, accelerator = self.options, self.accelerator
        for settings in self.optimizer.param_groups:
            settings["lr"] = options.lr * min(1.0, (self.step + 1) / max(1, options.warmup))
        total = torch.zeros((), device=accelerator.device)
        for micro, batch in enumerate(group):
            shard = self.peers.rank * options.accumulate + micro
            torch.manual_seed(generator(options.seed, "dropout", self.step, shard).initial_seed())
            x_0, t, eps, *labels = (
                part.to(accelerator.device, non_blocking=part.is_pinned()) for part in batch.parts()
            )
            if options.channels_last and x_0.ndim == 4:
                x_0, eps = (
                    part.contiguous(memory_format=torch.channels_last) for part in (x_0, eps)
                )
            sync = micro == len(group) - 1
            with contextlib.nullcontext() if sync else accelerator.no_sync(self.objective):
                with self.autocast():
                    loss = self.objective(x_0, t, eps, *labels) / len(group)
                with reaching():
                    accelerator.backward(loss)
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.parameters.values(), options.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step * options.batch_size, options.batch_size)
        return total

    def _save(self, report: Callable[[dict[str, object]], None], full: bool = True) -> None:
        """Write the state, the model and, when `full`, metrics and a sample sheet."""
        if not self.accelerator.is_main_process:
            return
        facts = {"step": str(self.step), "options": json.dumps(asdict(self.options))}
        save_state(self.state_path, self.parameters, self.ema, self.optimizer, facts)
        self.stage.objective.eval()
        with self.ema.applied(), torch.no_grad():
            metrics = self.stage.measure() if full else {}
            if full:
                self.stage.preview(self.folder / f"{self.stage.name}-{self.step:08d}")
            self.stage.save(
                {
                    "stage": self.stage.name,
                    "images": self.step * self.options.batch_size,
                    "options": asdict(self.options),
                    "metrics": metrics,
                }
            )
        self.stage.objective.train()
        if metrics:
            self._log(report, **metrics)

    def _log(self, report: Callable[[dict[str, object]], None], **values: float) -> None:
        if self.accelerator.is_main_process:
            images = self.step * self.options.batch_size
            record: dict[str, object] = {"step": self.step, "images": images, **values}
            append_log(self.log_path, record)
            report(record)
