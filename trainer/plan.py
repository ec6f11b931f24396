"""The plan: every number of one attempt, decided. Run -> RunPlan, pure; JSON both ways.

Workers read `plan.json` and five environment variables, nothing else. A later attempt of the same
run may have another world size, ZeRO stage or micro-batch: it gets a plan of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from trainer.config.older import completed
from trainer.config.schema import Config
from trainer.config.sections.base import Section
from trainer.errors import RunFolderError
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles


class StorePlan(Section):
    """One prepared store. `path` is absolute; `weight` as in data.sources."""

    source: str
    path: str
    weight: float
    train_tokens: int
    held_out_tokens: int
    # sha256 of its manifest.json, or of its content: another store is another order
    manifest_digest: str
    # of example stores
    train_rows: int = 0
    train_examples: int = 0
    labels: tuple[str, ...] = ()  # in the order of the model's outputs


class MemoryPlan(Section):
    """Estimated bytes on one rank at the peak of a step. Source: trainer/capacity.py."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int  # communication buckets and prefetch
    activations: int
    logits: int
    host: int = 0  # what offload keeps in the host's memory or on its disk; not in `total`
    staging: int = 0  # the host's memory that background saves are copied to; not in `total`
    kept: int = 0  # states in the node's shared memory, the neighbour's with them; not in `total`

    @property
    def total(self) -> int:
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.buffers
            + self.activations
            + self.logits
        )


class RunPlan(Section):
    """Units: rows, tokens, steps, bytes. Everything is global unless the name says per rank."""

    config: Config
    attempt: Annotated[int, Field(ge=1)]
    run_id: str  # for life: seeds W&B's id
    world_size: Annotated[int, Field(ge=1)]
    device: Literal["cpu", "cuda"]
    threads_per_rank: int
    gradient_accumulation_steps: int  # micro-steps of one optimizer step, equal on all ranks
    padding_rows: int  # rows of weight zero in a step, when the world does not divide the batch
    tokens_per_step: int
    vocab_size: int  # of the model
    num_parameters: int  # of the model without an adapter
    num_trained: int = 0  # an adapter's own among them; 0: a plan that did not count
    flops_per_token: float  # forward and backward; capacity.py says the formula
    memory_per_rank: MemoryPlan
    checkpoint_bytes: int
    stores: tuple[StorePlan, ...]
    # of encoder-decoders: the token that every target begins with
    decoder_start_id: int | None = None


def write_plan(path: Path, plan: RunPlan) -> None:
    write_json(path, plan.model_dump(mode="json"))


def read_plan(path: Path) -> RunPlan:
    """Raises: FileNotFoundError, pydantic.ValidationError."""
    return RunPlan.model_validate(read_json(path))


def plan_of_attempt(files: AttemptFiles) -> RunPlan:
    """Raises: RunFolderError if there is no plan that can be read."""
    try:
        return read_plan(files.plan)
    except (FileNotFoundError, NotADirectoryError):
        what = f"{files.root} is no attempt of a run: no plan.json"
        raise RunFolderError(f"{what}; give a run folder and one of its attempts") from None
    except ValueError as e:
        reason = _reason(e)
        raise RunFolderError(f"{files.plan} cannot be read ({reason}); start a new attempt") from e


def stored_plan(path: Path, *, defaults: Mapping[str, Any]) -> RunPlan:
    """A plan that is only looked at, also of an older version: settings that it lacks are taken
    from `defaults`. `path`: plan.json, or longhaul.json of an exported folder.

    Raises: RunFolderError if there is none, or it cannot be read.
    """
    try:
        value = read_json(path)
        value = value.get("plan", value)
        value["config"] = completed(value["config"], lambda: defaults)
        return RunPlan.model_validate(value)
    except OSError as e:
        raise RunFolderError(f"{path} cannot be read: {e.strerror}") from None
    except ValidationError as e:
        raise RunFolderError(f"{path} is no plan of this version: {_reason(e)}") from e
    except ValueError as e:
        raise RunFolderError(f"{path} is damaged: {_reason(e)}") from e
    except (KeyError, TypeError, AttributeError):
        raise RunFolderError(f"{path} is no plan: it holds no settings") from None


def _reason(error: ValueError) -> str:
    """On one line."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    first, *others = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    more = f", and {len(others)} more like it" if others else ""
    return f"{where}: {first['msg']}{more}"
