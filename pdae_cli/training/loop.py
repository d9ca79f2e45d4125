"""The training loop of every stage: accelerate places and synchronises, everything else is here.

Only dropout's masks, which a device draws, are functions of (seed, step, shard), where a shard is
one micro-batch of one process; all else that a step sees, hidden labels
among it, is a function of (seed, step, row).

Before each step the processes of a run tell one another whether to go on: over gloo on the CPU, so
that no GPU is waited for, and before gradients, so that none waits for a process that has failed.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from ..diffusion.noise import generator
from ..diffusion.trajectory import NOT_FINITE
from ..engine.computing import Say, check_compiler, ignore, within_memory
from ..errors import STOPPING, InputError, OutOfMemory, PdaeError, UsageError
from ..files import append, check_writable
from ..pictures.images import write_sheet
from .folder import is_made
from .muon import optimizer_of
from .stage import Rows, Stage, TrainOptions, checkpoint_activations, draw_batch, prefetched
from .state import EMA, load_state, locked, read_facts, save_state, trim_log

PATIENCE = timedelta(hours=6)  # with the process that measures and saves

Report = Callable[[dict[str, object]], None]


class PeerLost(PdaeError):
    """Another process has ended without a word: killed, or its machine is gone."""


class PeerFailed(SystemExit):
    """Another process has failed, and says why itself."""


@contextmanager
def reaching() -> Iterator[None]:
    """Raise PeerLost where a process that the block needs is gone."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError) and "gloo" not in str(error):
            raise
        raise PeerLost("another process of this run has ended; the same command resumes") from error


@contextmanager
def interrupted_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold signals back, so that no step is cut in two; the yielded function says whether one
    came."""
    caught: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    wanted = [s for s in STOPPING if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, lambda n, frame: caught.append(n)) for s in wanted if main}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def accelerator_of(logs: Path, cpu: bool, trackers: Sequence[str]) -> Accelerator:
    """Join the launcher's other processes; its own settings must not change the numbers."""
    return Accelerator(
        mixed_precision="no",  # the loop's own is `Training.autocast`
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        cpu=cpu or not torch.accelerator.is_available(),  # else each process would train alone
        log_with=list(trackers) or None,
        project_dir=logs,
    )


class Training:
    """One stage's run in a folder: `RUN/training/STAGE.safetensors`, `.jsonl` and sample sheets."""

    def __init__(
        self,
        stage: Stage,
        options: TrainOptions,
        folder: Path,
        cpu: bool = False,
        trackers: Sequence[str] = (),
    ) -> None:
        """Resume from the folder's state, if it has one; write nothing yet.

        Raises UsageError for options that don't fit together, the processes, or the state.
        """
        self.stage, self.options, self.folder = stage, options, folder / "training"
        self.warn: Say = ignore  # told what a caller may want to say
        self.state_path = self.folder / f"{stage.name}.safetensors"
        self.log_path = self.folder / f"{stage.name}.jsonl"
        self.accelerator = accelerator_of(self.folder / "trackers", cpu, trackers)
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        several = self.processes > 1
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
        if options.channels_last and self.accelerator.device.type == "cpu":
            # GroupNorm's backward pass in channels last ends in a segmentation fault: torch 2.13.
            raise UsageError(
                "--channels-last crashes torch on a CPU, and gains nothing there; leave "
                "--channels-last out"
            )
        shards = self.processes * options.accumulate
        if options.batch_size % shards:
            raise UsageError(
                f"--batch-size {options.batch_size} is not a multiple of {shards} "
                f"({self.processes} processes x {options.accumulate} micro-batches)"
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
        self.optimizer = optimizer_of(options.optimizer, self.parameters.values(), options.lr)
        kept, begun = (self.state_path, self.ema, self.optimizer), self.state_path.exists()
        self.step = self.saved = load_state(*kept, self._settings()) if begun else 0
        if self.step < self.steps:
            stage.guard()
        if self._greatest(self.step) != -self._greatest(-self.step):
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
        """Compute matrix products and convolutions in bfloat16, where the precision is bf16."""
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    def _settings(self) -> dict[str, object]:
        """Everything that the numbers depend on, for records and to compare with them."""
        return asdict(self.options) | self.stage.recorded()

    def train(self, report: Report) -> None:
        """Train up to `options.images`, saving on interruption; `report` gets each log line.

        Raises UsageError where another process trains in the folder.
        """
        with ExitStack() as stack:
            # No `_fail` where memory runs out, here or in `computing`: the others wait for this
            # one's gradients, and learn of it as this process ends.
            full = (
                f"{self.accelerator.device} has no room for a step; choose a smaller --batch-size, "
                "more --accumulate, or --checkpoint-activations"
            )
            stack.enter_context(within_memory(full))
            try:
                if self.rank == 0:
                    self._begin(stack)
                if self.step < self.steps:  # z to be learnt is encoded while Ctrl-C still ends it
                    self.stage.source.stack([0])
                self._train(report, stack.enter_context(interrupted_between_steps()))
            except KeyboardInterrupt as stop:
                if self.step != self.saved:  # else it would only lose the metrics
                    self._save(report, full=False)
                stop.args = ("the same command goes on where it stopped",)
                raise
            except (PeerLost, OutOfMemory):
                raise
            except PdaeError:
                self._fail()
                raise

    def _begin(self, stack: ExitStack) -> None:
        """Lock the folder and open the log and the trackers, until the stack is closed. Raises
        StorageError where a state has no room, of four numbers a weight (see `save_state`)."""
        check_writable(self.folder, sum(16 * p.numel() for p in self.parameters.values()))
        stack.enter_context(locked(self.folder))
        if self.state_path.exists() and read_facts(self.state_path)[0] != self.step:
            raise UsageError(f"{self.folder.parent} was trained on meanwhile; start again")
        trim_log(self.log_path, self.step)
        if self.accelerator.log_with:
            self._track(stack)

    def _track(self, stack: ExitStack) -> None:
        """Begin a run of each tracker, until the stack is closed. Raises UsageError where one
        can't, for want of a login, a server, or a package of its own."""
        logs = self.folder / "trackers"
        logs.mkdir(exist_ok=True)
        more = {"tensorboard": {"purge_step": self.step + 1}, "wandb": {"dir": str(logs)}}
        try:  # purge_step hides what will be written again
            self.accelerator.init_trackers(f"pdae-{self.stage.name}", self._settings(), more)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UsageError(f"a tracker can't begin: {reason}; mend it or leave it out") from error
        for tracker in self.accelerator.trackers:
            stack.callback(self._tell, tracker.finish)

    def _tell(self, tell: Callable[..., object], *what: object) -> None:
        """Tell trackers something; where one fails, warn, and go on without any."""
        try:
            tell(*what)
        except Exception as error:  # of whichever package
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if self.accelerator.trackers:
                self.warn(f"a tracker fails: {reason}; {self.log_path} has the rest")
            self.accelerator.trackers = []

    def _train(self, report: Report, interrupted: Callable[[], bool]) -> None:
        if self.step >= self.steps and not is_made(self.folder.parent, self.stage.name):
            self._save(report)
        begun, begun_step, losses = time.perf_counter(), self.step, []
        for group in self.batches():
            self._go_on(interrupted())
            losses.append(self.train_step(group))
            last = self.step == self.steps
            if self.step % self.options.log_every == 0 or last:
                images = (self.step - begun_step) * self.options.batch_size
                own = torch.stack(losses).mean().item()
                loss = self._reduced(own, dist.ReduceOp.SUM) / self.processes
                if not math.isfinite(loss):  # by now the weights aren't either
                    raise self._diverged("the losses")
                speed = images / (time.perf_counter() - begun)
                self._log(report, loss=loss, images_per_second=speed)
                losses, begun, begun_step = [], time.perf_counter(), self.step
            if self.step % self.options.save_every == 0 or last:
                self._save(report)
                begun, begun_step = time.perf_counter(), self.step
        self._go_on(interrupted())

    def batches(self) -> Iterator[list[Rows]]:
        """Yield each step's micro-batches of this process."""
        accumulate = self.options.accumulate
        device = self.accelerator.device.type

        def make(number: int) -> Rows:
            step, micro = divmod(number, accumulate)
            rows = (self.rank * accumulate + micro) * self.micro_batch, self.micro_batch
            batch = draw_batch(self.stage, self.options, step, *rows)
            if device == "cuda":  # which copies from pinned memory while it computes
                batch = Rows(*(part.pin_memory() for part in batch if part is not None))
            return batch

        first, last = self.step * accumulate, self.steps * accumulate
        # On a CPU the threads would take turns with the network's own, which costs far more than
        # the few milliseconds that a batch takes.
        inline = device == "cpu"
        stream = (make(n) for n in range(first, last)) if inline else prefetched(make, first, last)
        with closing(stream):  # type: ignore[type-var]
            for _ in range(self.step, self.steps):
                yield [next(stream) for _ in range(accumulate)]

    def train_step(self, group: list[Rows]) -> Tensor:
        """Take one optimiser step over this process's micro-batches; return the mean loss, (), on
        the device: nothing here waits for it."""
        options, accelerator = self.options, self.accelerator
        warm = (self.step + 1) / max(1, options.warmup)
        cool = (self.steps - self.step) / max(1, options.cooldown * self.steps)
        for settings in self.optimizer.param_groups:
            settings["lr"] = options.lr * min(1.0, warm, cool)
        total = torch.zeros((), device=accelerator.device)
        for micro, batch in enumerate(group):
            shard = self.rank * options.accumulate + micro
            torch.manual_seed(generator(options.seed, "dropout", self.step, shard).initial_seed())
            x_0, t, eps, *labels = (
                part.to(accelerator.device, non_blocking=part.is_pinned())
                for part in batch
                if part is not None
            )
            if options.channels_last and x_0.ndim == 4:
                x_0 = x_0.contiguous(memory_format=torch.channels_last)
                eps = eps.contiguous(memory_format=torch.channels_last)
            sync = micro == len(group) - 1
            with nullcontext() if sync else accelerator.no_sync(self.objective):
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

    def _save(self, report: Report, full: bool = True) -> None:
        """Write metrics and a sample sheet, when `full`, and the model; the state last, so that a
        killed run goes on from the state before, and makes all of them again. Raises PdaeError for
        weights that aren't finite, and writes nothing."""
        if self.rank:
            return
        weights = *self.parameters.values(), *self.ema.shadow.values()
        if not all(one.isfinite().all() for one in weights):
            raise self._diverged("the weights")
        self.stage.objective.eval()
        try:
            metrics = self._write_model(full)
        except InputError as error:
            if NOT_FINITE in str(error):
                raise self._diverged("the samples") from error
            raise
        self.stage.objective.train()
        if metrics:
            self._log(report, **metrics)
        facts = {"step": str(self.step), "options": json.dumps(self._settings())}
        save_state(self.state_path, self.ema, self.optimizer, facts)
        self.saved = self.step

    def _write_model(self, full: bool) -> dict[str, float]:
        """Write the model, of averaged weights; return the metrics, where they are measured."""
        name, metrics = self.stage.name, dict[str, float]()
        with self.ema.applied(), torch.no_grad():
            if full:
                metrics = self.stage.measure()
                if not all(map(math.isfinite, metrics.values())):
                    raise self._diverged("the metrics")
                sheet = self.folder / f"{name}-{self.step:08d}.png"
                write_sheet(sheet, *self.stage.preview(), {"command": f"train {name}"})
            summary = {"stage": name, "images": self.step * self.options.batch_size}
            self.stage.save(summary | {"options": self._settings(), "metrics": metrics})
        return metrics

    def _diverged(self, what: str) -> PdaeError:
        return PdaeError(
            f"{what} of step {self.step} aren't finite; what was saved in {self.folder.parent} "
            "stays; begin anew, in another folder, with a smaller --lr, or --precision float32"
        )

    def _log(self, report: Report, **values: float) -> None:
        if self.rank == 0:
            images = self.step * self.options.batch_size
            record: dict[str, object] = {"step": self.step, "images": images, **values}
            append(self.log_path, json.dumps(record).encode() + b"\n")
            self._tell(self.accelerator.log, values, self.step)
            report(record)

    # --- Among processes ---------------------------------------------------------------------

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        """A number of all processes, which call this together. Alone, it costs nothing."""
        if self._group is None:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        with reaching():
            dist.all_reduce(shared, how, group=self._group)
        return shared.item()

    def _greatest(self, value: float) -> float:
        return self._reduced(value, dist.ReduceOp.MAX)

    def _go_on(self, stop: bool) -> None:
        """Raise KeyboardInterrupt where any process is to stop, PeerFailed where one has failed;
        all call this before each step and after the last."""
        worst = self._greatest(1 if stop else 0)
        if worst > 1:
            raise PeerFailed(1)
        if worst == 1:
            raise KeyboardInterrupt

    def _fail(self) -> None:
        """End the others, which call `_go_on`. Of several that fail the first speaks, and the
        others raise PeerFailed."""
        own = 2 + self.processes - self.rank
        if self._greatest(own) != own:
            raise PeerFailed(1)
