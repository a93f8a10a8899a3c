"""Progress of long work: a live line with an estimate in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_SECONDS = 15.0


class Progress:
    """Shows one line per step, on standard error so that standard output stays clean."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.task = ("", 0)
        self.started = 0.0
        self.first = 0
        self.shown = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def listen(self, step: str, message: str, done: int, total: int) -> None:
        """Show where a step is; ``total`` 0 where it is not known, ``done == total`` when it is finished."""
        if self.quiet:
            return
        now = time.monotonic()
        if (step, total) != self.task:  # the parts of a step differ in how much there is to do
            self.shown = self.shown if step == self.task[0] else 0.0
            self.task, self.started, self.first = (step, total), now, done
        finished = total > 0 and done >= total
        line = f"{step}: {message}{'' if finished else self._estimate(done, total, now)}"
        if self.live is not None:
            if finished:
                self.live.console.print(Text(line))
            else:
                self.live.update(Text(line))
        elif finished or now - self.shown >= _PLAIN_SECONDS:
            click.echo(line, err=True)
            self.shown = now

    def _estimate(self, done: int, total: int, now: float) -> str:
        if not total:
            return ""
        share = f"  {done}/{total}"
        elapsed = now - self.started
        # What a resumed step had done before tells nothing of its speed now.
        if done <= self.first or elapsed < 2:
            return share
        left = elapsed / (done - self.first) * (total - done)
        return f"{share}, {int(left // 60)}:{int(left % 60):02d} left"
