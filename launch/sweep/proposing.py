"""The next trial of a sweep, and the sampler brought to where it was when a sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

from launch.sweep.journal import Journal, Trial
from launch.sweep.samplers import Sampler
from launch.sweep.space import Space
from trainer.config.sections.sweep import SweepSection


@dataclass
class Proposer:
    """`total`: trials in all. What it knows is in the journal, but for what was told."""

    section: SweepSection
    space: Space
    sampler: Sampler
    journal: Journal
    total: int
    _untold: set[int] = field(default_factory=set)  # ended, and not known to the sampler yet

    @property
    def proposed(self) -> int:
        """Those of a population that go on from others are not among them."""
        return sum(not one.parent for one in self.journal.trials.values())

    @property
    def may_propose(self) -> bool:
        if self.proposed >= self.total:
            return False
        if not self.section.generation:
            return True
        first = self._first_of_generation(self.proposed + 1)
        return all(t.has_ended for t in self.journal.trials.values() if t.number < first)

    def propose(self) -> Trial:
        number = self.proposed + 1
        self._tell_sampler(number)
        point = self.sampler.ask(number)
        return self.journal.write(
            "proposed",
            number,
            point=dict(point),
            overrides=list(self.space.overrides(point)),
            bracket=self.journal.bracket_of(number),
        )

    def note_ended(self, number: int) -> None:
        self._untold.add(number)

    def replay(self) -> None:
        """Bring the sampler to where it was: the same asked and told in the same order."""
        for line in self.journal.lines:
            if line["event"] == "proposed" and not line.get("parent"):
                self._tell_sampler(int(line["trial"]))
                self.sampler.ask(int(line["trial"]))
            elif line["event"] == "ended":
                self.note_ended(int(line["trial"]))

    def _tell_sampler(self, number: int) -> None:
        """All that ended before trial `number` is proposed, by number: which came first is chance.
        Those of its own generation are for the next.
        """
        known = {n for n in self._untold if n < self._first_of_generation(number)}
        for one in sorted(known):
            self.sampler.tell(self.journal.trials[one].told)
        self._untold -= known

    def _first_of_generation(self, number: int) -> int:
        size = self.section.generation or 1
        return (number - 1) // size * size + 1
