"""How far a run is: what the trainings of flows and of autoencoders share."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import randomness
from ..checkpoints.training_state import damaged
from ..data.loader import DataCursor
from .malloc_trim import trim_heap
from .run_folder import exported
from .signals import SignalHandler
from .watch import DataGone, DataWatch, GradientWatch

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD = "saving the current step, then stopping; press Ctrl-C again to stop at once without saving"


class Progress:
    """The progress of a run in a folder.

    Args:
        run: The folder.
        last: The number of steps to train.
        resume: The command that continues the run.
        tells: Whether this process says that a signal has come.

    Attributes:
        done: The number of steps that are trained.
        saved: The step of the newest checkpoint.
        cursor: The position in the data.
        seconds: The time that the run took, with checkpoints and sheets.
        gradients, images_read: Count the steps and images that were skipped.
        stopped_by: The signal that ended training before its last step, which is saved.
    """

    def __init__(self, run: Path, last: int, resume: str, tells: bool) -> None:
        self.run, self.last, self.resume_command = run, last, resume
        self.done = self.saved = 0
        self.cursor, self.seconds = DataCursor(), 0.0
        self.gradients, self.images_read = GradientWatch(), DataWatch()
        self.termination = SignalHandler(*SIGNALS, told=TOLD if tells else "")
        self.stopped_by: signal.Signals | None = None
        self._clock = 0.0

    @property
    def stopping(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self.stopped_by is not None

    @property
    def unfinished(self) -> bool:
        """Whether there is another step to train."""
        return self.done < self.last and not self.stopping

    def is_due(self, every: int | None) -> bool:
        """Whether this step is one in `every`, or the last; None: never."""
        return every is not None and self.done > 0 and (self.done % every == 0 or self.done == self.last)

    def check_exports(self, steps: Sequence[int]) -> None:
        """Warns of steps at which nothing will be exported, because they are over or never come."""
        if missed := [step for step in steps if step > self.last or self.done >= step]:
            missed = [step for step in missed if not exported(self.run, step).is_dir()]
        if missed and self.unfinished:
            logger.warning(
                "log.export_at: nothing is exported at %s, past or after the end", ", ".join(map(str, missed))
            )

    @property
    def sheet(self) -> Path:
        """The path of this step's sheet of images."""
        return self.run / "samples" / f"step-{self.done:08d}.png"

    def start_clock(self) -> None:
        """Begins to count the seconds of the run, before its first step here."""
        self._clock = time.perf_counter()

    @contextmanager
    def timed(self, on_cpu: bool) -> Iterator[dict[str, Any]]:
        """Times the step in a with block; the value takes its figures, `tokens` among them, and gets those of time.

        tokens_per_second includes waiting for images; seconds also includes the checkpoints, sheets and held-out losses
        since the last step. cpu_seconds is the time of all threads, which other work on the machine hardly changes.
        """
        figures: dict[str, Any] = {}
        start, cpu_start = time.perf_counter(), time.process_time()
        yield figures
        end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
        self.seconds += end - self._clock
        self._clock = end
        if on_cpu:
            trim_heap(self.done)
        figures["tokens_per_second"] = figures["tokens"] / (end - start)
        figures |= {"seconds": round(self.seconds, 3), "cpu_seconds": round(cpu_seconds, 4)}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of it."""
        return {
            "position": asdict(self.cursor),
            "skipped": self.gradients.skipped,
            "skipped_images": self.images_read.skipped,
            "seconds": self.seconds,
            "randomness": randomness.VERSION,
        }

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Continues from the state in a checkpoint. Raises UserError if it is damaged."""
        try:
            self.done, self.cursor = int(state["step"]), DataCursor(**state["position"])
            self.gradients.skipped, self.seconds = int(state["skipped"]), float(state["seconds"])
            self.images_read.skipped = int(state["skipped_images"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(checkpoint / "state.json", repr(error)) from None
        self.saved = self.done
        logger.info("continuing from %s", checkpoint)
        if state.get("randomness") != randomness.VERSION:
            logger.warning(
                "%s is by another version of fitv2: noise, times, dropped labels and the order of the images differ "
                "from here on",
                checkpoint,
            )

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Turns an OSError of a checkpoint or model into a sentence."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"step {self.done} could not be saved ({error}); the checkpoints before it are unchanged: make room "
                f"for {self.run / 'checkpoints'}, then continue with: {self.resume_command}"
            ) from None

    def gone(self, error: DataGone, sources: str) -> DataGone:
        """Returns the error of vanished data with what has become of the run."""
        reached = f"step {self.done} is saved" if self.done else "no step was trained yet"
        return DataGone(
            f"{error}: {sources} has vanished or is damaged; {reached}. When the data is back, continue with: "
            f"{self.resume_command}"
        )
