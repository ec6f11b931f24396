"""The arms: our loop, a bare loop, Hugging Face's Trainer. Each does one optimizer step at a call.

All see the same rows in the same order, start from the same values, use fused AdamW (0.9, 0.95,
decay 0.1 on matrices) with a constant rate, clip to 1.0 and add micro-batches up exactly; their
losses are compared after the run.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from trainer.build import build_job, build_observers, starting_values
from trainer.data.table import open_sources, open_stream
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.loop import steps
from trainer.plan import RunPlan
from trainer.records.fragment import MASTER, Fragment
from trainer.records.run_files import RunFiles

Row = dict[str, torch.Tensor]
RATE, DECAY, BETAS, EPS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1e-8, 1.0


def check_peers() -> None:
    """Raises: SystemExit where Hugging Face's Trainer would not run."""
    if importlib.util.find_spec("accelerate") is None:
        raise SystemExit(
            "HF Trainer, one of the arms, needs accelerate, which longhaul does not: "
            "pip install -c constraints.txt -e '.[bench]'"
        )


class Arm(Protocol):
    losses: list[float]

    def step(self) -> None:
        """One optimizer step, with all that the arm does between two of them."""

    def close(self) -> None: ...


class _NeverStops:
    def is_set(self) -> bool:
        return False


class Ours:
    """`trainer.loop.steps` over a job built from a real plan, metrics.jsonl written every step."""

    def __init__(self, plan: RunPlan, world: World, folder: Path) -> None:
        run, startup = RunFiles(folder), StartUp()
        self.job, self._state = build_job(plan, world, run=run, stop=_NeverStops(), startup=startup)
        if world.place.rank == 0:
            watch = build_observers(plan, run, job=self.job, state=self._state, startup=startup)
            self.job = replace(self.job, observers=watch)
        self.losses: list[float] = []
        self._steps = steps(self.job, self._state)

    def step(self) -> None:
        report, _ = next(self._steps)  # what `fit` does with it while nothing is due
        self._state.advance(report)
        for observer in self.job.observers:
            observer.on_step(report)
        self.losses.append(report.loss)

    def close(self) -> None:
        self._steps.close()
        self.job.stream.close()
        for observer in self.job.observers:
            observer.close()
        self.job.engine.close()


def starting_tensors(plan: RunPlan, job: Any) -> dict[str, torch.Tensor]:
    """The whole model before step 1, fp32."""
    source, found = starting_values(plan, job.engine), {}
    for name, shape in job.engine.layout():
        size = torch.Size(shape).numel()
        values = torch.empty(size)
        source.read(Fragment(name, MASTER, tuple(shape), 0, size), values)
        found[name] = values.view(shape)
    return found


def rows_of(plan: RunPlan, world: World, *, num_steps: int, positions: bool) -> list[Row]:
    """Every row of the first steps in the order in which all ranks consume them.

    `positions`: give them to the model, which then keeps the documents of a row apart.
    """
    sources = open_sources(plan)
    config = plan.config
    alone = plan.model_copy(update={"world_size": 1})
    place = replace(world.place, rank=0, world_size=1, local_rank=0)
    stream = open_stream(alone, _Placed(place), sources=sources, cursor=None)
    rows: list[Row] = []
    for step in range(1, num_steps + 1):
        for batch in stream.step(step):
            for i in range(config.batch.micro_batch_size):
                row = {
                    "input_ids": batch.inputs_RT[i].clone(),
                    # already shifted; given twice, because Hugging Face asks for the first
                    "labels": batch.labels_RT[i].clone(),
                    "shift_labels": batch.labels_RT[i].clone(),
                }
                if positions:
                    row["position_ids"] = batch.positions_RT[i].clone()
                rows.append(row)
    stream.close()
    return rows


class _Placed:
    """A world that only knows its place: all a stream asks."""

    def __init__(self, place: Any) -> None:
        self.place = place


class Bare:
    """What a careful person writes around LlamaForCausalLM; one process."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], *, micro_rows: int, micro: int):
        self._model = model
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            decayed(model), lr=RATE, betas=BETAS, eps=EPS, fused=True
        )
        loader = torch.utils.data.DataLoader(rows, batch_size=micro_rows)  # type: ignore[arg-type]
        self._batches: Iterator[Row] = iter(loader)
        self._micro = micro
        self.losses: list[float] = []

    def step(self) -> None:
        batches = [next(self._batches) for _ in range(self._micro)]
        terms = sum(int((b["labels"] != -100).sum()) for b in batches)
        total = torch.zeros(())
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = self._model(**batch, num_items_in_batch=terms).loss
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.losses.append(total.item())

    def close(self) -> None:
        """Nothing is held."""


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices with decay, the rest without."""
    every = list(model.parameters())
    matrices = [p for p in every if p.ndim > 1]
    others = [p for p in every if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


class HfTrainer:
    """Hugging Face's Trainer, held after every step: it runs in a thread that waits its turn."""

    def __init__(self, model: Any, rows: Sequence[Row], output: Path, **arguments: Any) -> None:
        """`arguments`: TrainingArguments beside what all arms have in common."""
        self.losses: list[float] = []
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closed = False
        run = self._trainer(model, rows, output, arguments)
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closed = True
        self._go.release()
        self._thread.join()

    def _run(self, run: Callable[[], object]) -> None:
        self._go.acquire()
        try:
            run()
        except BaseException as e:  # raised again by the caller's next step
            self._error = e
        self._done.release()

    def _turn_over(self) -> bool:
        """A step is done; True if there will be no other."""
        self._done.release()
        self._go.acquire()
        return self._closed

    def _trainer(
        self, model: Any, rows: Sequence[Row], output: Path, arguments: dict[str, Any]
    ) -> Callable[[], object]:
        import transformers
        from accelerate.state import AcceleratorState
        from transformers import Trainer, TrainerCallback, TrainingArguments

        # Accelerate keeps one state a process; a second Trainer would get the settings of the first
        AcceleratorState._shared_state = {}
        transformers.logging.set_verbosity_error()
        arm = self

        class TakesTurns(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
                arm.losses.append(trainer.seen)
                trainer.seen = 0.0
                control.should_training_stop = arm._turn_over()
                return control

        class InOrder(Trainer):
            seen = 0.0

            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

            def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                loss = super().training_step(*args, **kwargs)
                self.seen += float(loss)
                return loss

        common = {
            "output_dir": str(output),
            "num_train_epochs": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": True,
            "remove_unused_columns": False,  # it would take away shift_labels
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "weight_decay": DECAY,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "max_grad_norm": CLIP,
            "disable_tqdm": True,
        }
        trainer = InOrder(
            model=model,
            args=TrainingArguments(**(common | arguments)),
            train_dataset=rows,  # type: ignore[arg-type]
            callbacks=[TakesTurns()],
        )
        return trainer.train
