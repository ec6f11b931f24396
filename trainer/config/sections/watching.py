"""What is kept and what is shown: checkpoints, evaluations, observers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainer.config.sections.base import Section

Count = Annotated[int, Field(ge=0)]


class RemoteSection(Section):
    url: str | None  # s3://bucket/prefix, gs://..., file:///mnt/...; null: copies nowhere
    every: Annotated[int, Field(ge=1)]  # committed steps
    keep_last: Annotated[int, Field(ge=1)]  # newest copies kept
    timeout_s: Annotated[float, Field(gt=0)]  # for one step; then it is given up, training goes on
    drain_s: Annotated[float, Field(ge=0)]  # waited for the last copy where training ends
    options: dict[str, Any]  # of the store, endpoint_url for one; never credentials


class PeerSection(Section):
    every: Literal["auto"] | Count  # steps between states kept in memory; 0: none are
    folder: str  # in shared memory, with room for two states of a node, and two of its neighbour


class CheckpointSection(Section):
    keep_last: Annotated[int, Field(ge=1)]  # newest complete checkpoints kept
    keep_every: Count  # steps: multiples of this are kept for ever; 0: none
    max_failed_saves: Annotated[int, Field(ge=1)]  # in a row; then the run stops (exit 78)
    asynchronous: bool  # training goes on while a process beside each rank writes
    when_busy: Literal["wait", "skip"]  # a save is due while two are still being written
    writer_timeout_s: Annotated[float, Field(gt=0)]  # a disk that does nothing is given up
    checksum_source: bool  # find bits that flip in memory between the copy and the write
    remote: RemoteSection
    peer: PeerSection


class EvalsSection(Section):
    held_out_rows: Count  # rows of the held-out split a time; 0: no evaluation
    sample_prompt: str  # text continued at the end of training; "": no sample
    sample_tokens: Count


class ConsoleSection(Section):
    enabled: bool


class TensorBoardSection(Section):
    enabled: bool


class WandbSection(Section):
    mode: Literal["off", "offline", "online"]
    project: str
    entity: str | None
    tags: tuple[str, ...]
    group: str | None = None  # runs that belong together

    @field_validator("mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML 1.1 reads an unquoted `off` as false."""
        return "off" if value is False else value


class ProfilerSection(Section):
    first_step: Count  # 0: off
    num_steps: Annotated[int, Field(ge=1)]


class ObserversSection(Section):
    console: ConsoleSection
    tensorboard: TensorBoardSection
    wandb: WandbSection
    profiler: ProfilerSection
    peak_tflops: Annotated[float, Field(ge=0)]  # per rank, for MFU; 0: table or measured (CPU)
