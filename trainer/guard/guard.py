"""The ladder: skip a step, go back past the first of several, stop. State lives in checkpoints.

    step's numbers -> judge -> apply | log | skip      one bad step; data, schedule go on
                                     | rewind          `max_skips` within `skip_window` steps
                                     | stop            `max_rewinds` in a row did not help

Nothing here depends on rank, clock or chance: after a kill a run decides what it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from trainer.config.sections.guard import GuardSection
from trainer.engine.base import StepStats
from trainer.guard.judge import Accepted, Anomaly, Kind, Numbers, judge

Action = Literal["apply", "log", "skip", "rewind", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What is done about a step, and why. `first`: the first anomaly of those that add up."""

    action: Action = "apply"
    anomaly: Anomaly | None = None
    first: int = 0
    bundle: bool = False  # an incident worth writing down
    new_level: bool = False  # logged spikes in a row: from here on they are what is usual


APPLIED = Verdict()


@dataclass(frozen=True)
class Rewound:
    """One way back: from the end of step `at` to that of `to`; samples [start, stop) left out."""

    at: int
    to: int
    first: int
    start: int
    stop: int


@dataclass(frozen=True)
class GuardState:
    """Plain values: it travels in a checkpoint's manifest."""

    accepted: Accepted = field(default_factory=Accepted)
    skips: tuple[int, ...] = ()  # steps within the last `skip_window`
    skipped: int = 0  # steps, in all
    logged_in_a_row: int = 0
    rewinds: tuple[Rewound, ...] = ()
    incidents: dict[Kind, int] = field(default_factory=dict)

    @classmethod
    def of(cls, value: dict[str, Any] | None) -> GuardState:
        """What `as_dict` gave; a fresh state for a checkpoint that was made without a guard."""
        if not value:
            return cls()
        accepted = Accepted(*(tuple(value["accepted"][k]) for k in ("losses", "log_norms")))
        rewinds = tuple(Rewound(**one) for one in value["rewinds"])
        skips = tuple(value["skips"])
        return cls(**value | {"accepted": accepted, "rewinds": rewinds, "skips": skips})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Guard:
    """Judges every step of one run, on every rank alike."""

    def __init__(self, rules: GuardSection, saved: dict[str, Any] | None = None) -> None:
        """`saved`: what `saved()` gave for the checkpoint that was loaded."""
        self._rules = rules
        self.state = GuardState.of(saved)
        self._judged: tuple[Accepted, Numbers, Anomaly | None] | None = None

    def saved(self) -> dict[str, Any]:
        return self.state.as_dict()

    def wants(self, loss: float) -> Callable[[float], bool]:
        """For `Engine.step`: whether the step is applied, once its gradient norm is known."""

        def apply_if(grad_norm: float) -> bool:
            return self._action(self._judge(loss, grad_norm)) in ("apply", "log")

        return apply_if

    def note(self, step: int, loss: float, stats: StepStats) -> Verdict:
        """What became of the step. Its numbers are remembered if they were accepted."""
        anomaly = self._judge(loss, stats.grad_norm)
        if anomaly is None or (stats.overflowed and Numbers(loss, 0.0).is_finite):
            if anomaly is None:
                numbers, window = Numbers(loss, stats.grad_norm), self._rules.window
                self._change(accepted=self.state.accepted.and_(numbers, window=window))
            self._change(skips=self._recent(step), logged_in_a_row=0)
            return APPLIED
        action = self._action(anomaly)
        verdict = Verdict(action, anomaly, first=step, bundle=self._is_new_incident(anomaly.kind))
        if action == "log":
            return self._log(verdict)
        if action == "skip":
            return self._skip(step, verdict)
        return verdict

    def rewound(self, saved: dict[str, Any] | None, done: Rewound) -> None:
        """The run stands at an older checkpoint again, whose guard said `saved`.

        What was done since stays known: else the same way back would be taken for ever.
        """
        before = GuardState.of(saved)
        rewinds, incidents = (*self.state.rewinds, done), self.state.incidents
        self.state = replace(before, rewinds=rewinds, incidents=incidents)

    @property
    def first_anomaly(self) -> int | None:
        """Of the skips that may still add up to a way back; checkpoints before it are needed."""
        return self.state.skips[0] if self.state.skips else None

    @property
    def usual_loss(self) -> float | None:
        """Median of the accepted ones; None before there is one."""
        losses = self.state.accepted.losses
        return median(losses) if losses else None

    def replicas_due(self, step: int) -> bool:
        every = self._rules.replica_check_every
        return every > 0 and step % every == 0

    @property
    def checks_replicas(self) -> bool:
        return self._rules.replica_check_every > 0

    def _judge(self, loss: float, grad_norm: float) -> Anomaly | None:
        rules = self._rules
        # With few values the deviation itself is uncertain; a quarter of a window is enough.
        fewest = rules.window // 4 if rules.spike != "ignore" else rules.window + 1
        numbers, accepted = Numbers(loss, grad_norm), self.state.accepted
        if self._judged is not None and self._judged[0] is accepted and self._judged[1] == numbers:
            return self._judged[2]  # asked before the update, noted after it
        found = judge(numbers, accepted, sigmas=rules.spike_sigmas, fewest=fewest)
        self._judged = (accepted, numbers, found)
        return found

    def _action(self, anomaly: Anomaly | None) -> Action:
        if anomaly is None:
            return "apply"
        if anomaly.kind == "non_finite":
            return "skip" if self._rules.non_finite == "skip" else "stop"
        return "skip" if self._rules.spike == "skip" else "log"

    def _log(self, verdict: Verdict) -> Verdict:
        logged = self.state.logged_in_a_row + 1
        if logged <= self._rules.window // 4:
            self._change(logged_in_a_row=logged)
            return verdict
        self._change(logged_in_a_row=0, accepted=Accepted())
        return replace(verdict, new_level=True)

    def _skip(self, step: int, verdict: Verdict) -> Verdict:
        skips = (*self._recent(step), step)
        self._change(skips=skips, skipped=self.state.skipped + 1)
        if len(skips) < self._rules.max_skips:
            return replace(verdict, first=skips[0])
        action: Action = "stop" if self._in_a_row(step) >= self._rules.max_rewinds else "rewind"
        return replace(verdict, action=action, first=skips[0])

    def _recent(self, step: int) -> tuple[int, ...]:
        return tuple(s for s in self.state.skips if s > step - self._rules.skip_window)

    def _in_a_row(self, step: int) -> int:
        """Ways back with no quiet `skip_window` between one and the next, up to now."""
        count = 0
        for done in reversed(self.state.rewinds):
            if step - done.at > self._rules.skip_window:
                break
            count, step = count + 1, done.at
        return count

    def _is_new_incident(self, kind: Kind) -> bool:
        so_far = self.state.incidents.get(kind, 0)
        if so_far >= self._rules.max_incidents:
            return False
        self._change(incidents={**self.state.incidents, kind: so_far + 1})
        return True

    def _change(self, **values: Any) -> None:
        self.state = replace(self.state, **values)
