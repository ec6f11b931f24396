"""Extractive answers: the loss against Hugging Face's, the best span and the windows by hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from trainer.batch import ExampleBatch
from trainer.dist.place import Place
from trainer.dist.world import Alone
from trainer.evals.totals import total_scores
from trainer.evals.whole_examples import best_parts
from trainer.tasks.extract_qa import ExtractQa, best_span
from trainer.tasks.parts import Part

TASK = ExtractQa(answer_tokens=4, no_answer=True, threshold=0.0)


def test_best_span_is_that_of_all_spans() -> None:
    random = np.random.default_rng(3)
    for length in (1, 2, 7, 20):
        starts, ends = random.integers(0, 5, (2, length)).astype(np.float32)
        inside = random.random(length) < 0.7
        every = [
            (float(starts[a]) + float(ends[b]), a - b, -a)
            for a in range(length)
            for b in range(a, min(length, a + 4))
            if inside[a] and inside[b]
        ]
        score, (a, b) = best_span(starts, ends, inside, longest=4)
        assert (score, a - b, -a) == (max(every) if every else (-np.inf, 0, 0))


class _Together(Alone):
    """One of several worlds in threads that add up and compare what they are given."""

    def __init__(self, rank: int, shared: list[Sequence[float]], barrier: threading.Barrier):
        super().__init__()
        self.place = Place(rank=rank, world_size=len(shared))
        self._shared, self._barrier = shared, barrier

    def _all(self, values: Sequence[float], how: Callable[..., float]) -> list[float]:
        self._shared[self.place.rank] = list(values)
        self._barrier.wait()
        found = [how(row) for row in zip(*self._shared, strict=True)]
        self._barrier.wait()
        return found

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._all(values, sum)

    def max(self, values: Sequence[float]) -> list[float]:
        return self._all(values, max)


def _dealt(parts: Sequence[Part], ranks: Sequence[int]) -> list[tuple[list[Part], int]]:
    """What `best_parts` finds on each rank, part i lying on rank ranks[i]."""
    size = max(ranks) + 1
    barrier = threading.Barrier(size, timeout=300)
    shared: list[Sequence[float]] = [[] for _ in range(size)]
    found: dict[int, tuple[list[Part], int]] = {}

    def work(rank: int) -> None:
        mine = [part for part, r in zip(parts, ranks, strict=True) if r == rank]
        found[rank] = best_parts(_Together(rank, shared, barrier), mine)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def _part(example: str, number: int, parts: int, score: float, least: float) -> Part:
    return Part(example, number, parts, score, least, ((score,), (0.0,)))


PARTS = (
    _part("a", 0, 3, 1.0, 9.0),
    _part("a", 1, 3, 5.0, 7.0),
    _part("a", 2, 3, 5.0, 8.0),  # as good as the one before, which counts
    _part("b", 0, 1, -np.inf, 2.0),  # no token that could be an answer
    _part("c", 1, 2, 3.0, 1.0),  # the window before it was not scored
)


def test_best_parts_are_the_same_however_the_ranks_share_them() -> None:
    for ranks in itertools.product((0, 1, 2), repeat=len(PARTS)):
        found = _dealt(PARTS, ranks)
        best = sorted((p for parts, _ in found for p in parts), key=lambda p: p.example)
        assert [(p.example, p.number, p.least) for p in best] == [("a", 1, 7.0), ("b", 0, 2.0)]
        assert sum(left_out for _, left_out in found) == 1


class Says(torch.nn.Module):
    def __init__(self, starts_RT: torch.Tensor, ends_RT: torch.Tensor) -> None:
        super().__init__()
        self.said = starts_RT, ends_RT

    def forward(self, fields: dict[str, torch.Tensor], *, want: str) -> tuple[torch.Tensor, ...]:
        return self.said


def test_answer_is_the_best_of_all_windows_or_none() -> None:
    """Question 1: two windows, the second has the answer. Question 2 has none, and gets none."""
    context = "Anna lives in Oslo now"
    words = [(0, 4), (5, 10), (11, 13), (14, 18), (19, 22)]
    windows = [[0, 1, 2], [2, 3, 4], [0, 1, 2]]  # words of the context behind the first token
    begins = [[-1, *(words[w][0] for w in window)] for window in windows]
    ends = [[-1, *(words[w][1] for w in window)] for window in windows]
    starts = torch.tensor([[4.0, 1, 0, 0], [1.0, 0, 3, 0], [5.0, 0, 0, 0]])
    stops = torch.tensor([[4.0, 1, 0, 0], [1.0, 0, 3, 0], [5.0, 0, 4, 0]])
    flat = {"begins_RT": torch.tensor(begins), "ends_RT": torch.tensor(ends)}
    fields = flat | {
        "documents_RT": torch.ones(3, 4, dtype=torch.long),
        "first_E": torch.tensor([0, 4, 8]),
        "weights_E": torch.ones(3),
        "spans_EC": torch.tensor([[0, 0], [2, 2], [0, 0]]),
    }
    one = {"context": context, "answers": ["Oslo"], "record": "f row 1", "windows": 2}
    two = {"context": context, "answers": [], "record": "f row 2", "windows": 1}
    said = ({**one, "window": 0}, {**one, "window": 1}, {**two, "window": 0})
    batch = ExampleBatch(fields, (0, 1, 2), 3, 12, said)
    device = torch.device("cpu")

    def values(task: ExtractQa) -> dict[str, float]:
        totals = total_scores(Alone(), task, Says(starts, stops), [batch], device=device)
        return task.values(totals)

    found = values(TASK)
    assert (found["exact_match"], found["has_answer_f1"], found["no_answer_accuracy"]) == (1, 1, 1)
    eager = values(ExtractQa(answer_tokens=4, no_answer=True, threshold=100.0))
    assert (eager["has_answer_exact_match"], eager["no_answer_accuracy"]) == (1, 0)
    shy = values(ExtractQa(answer_tokens=4, no_answer=True, threshold=-100.0))
    assert (shy["has_answer_exact_match"], shy["no_answer_accuracy"]) == (0, 1)
