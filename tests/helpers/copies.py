"""Copies of steps in a dictionary: made, spoilt, and gone on from by an attempt with a disk."""

from __future__ import annotations

from typing import Any

from tests.helpers.object_model import RUN_ID, Objects, engine, upload
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.remote_loading import Found, load_newest
from trainer.dist.world import Alone
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage
from trainer.storage.remote import ObjectStore


def resumed(run: RunFiles, store: ObjectStore, **settings: Any) -> Found | None:
    """What an attempt with this disk goes on from; every value was compared."""
    ours, disk = engine(Alone()), StepFolders(LocalStorage(), run.checkpoints)
    found = load_newest(
        Alone(), ours, disk, store, run=run, run_hash=RUN_ID,
        **{"delays_s": (), "url": "s3://b/run"} | settings,
    )  # fmt: skip
    assert found is None or not ours.differs(found.step)
    return found


def copies(run: RunFiles, *steps: int, **settings: Any) -> Objects:
    store = Objects()
    for step in steps:
        assert upload(store.content, run, step, **{"keep_last": 9} | settings)
    return store


def key_of(store: Objects, step: int, name: str) -> str:
    return next(k for k in store.content if f"step-{step:08d}." in k and k.endswith(name))


def spoil(store: Objects, step: int, name: str = "rank-00000.safetensors") -> None:
    key = key_of(store, step, name)
    content = bytearray(store.content[key])
    content[-1] ^= 1
    store.content[key] = bytes(content)
