"""`longhaul train` and `resume` with ranks that do not compute (tests/helpers/fake_worker.py).

python -m tests.helpers.fake_ranks train|resume ARGUMENTS
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.backends.local import LocalBackend
from launch.backends.ray import RayBackend
from launch.backends.slurm import SlurmBackend
from launch.backends.ssh import SshBackend
from launch.base import Backend
from launch.many import start_many
from launch.run.run_folder import find
from launch.settings.asked import from_overrides, of_run
from launch.settings.several import members
from launch.start import start
from trainer.config.schema import Config
from trainer.errors import LonghaulError
from trainer.records.store_lookup import store_keys
from trainer.records.token_store import TOKENIZER, Shard, StoreManifest, write_manifest

_TOKENS = 10_000  # enough for a row


def main(arguments: Sequence[str]) -> int:
    verb, *rest = arguments
    try:
        if rest[:1] == ["-m"]:
            found, name = members(rest[1:])
            for one in found:
                blank_store(one.config)
            return start_many(found, name=name, backend=fake_backend(found[0].config.launch.kind))
        config = from_overrides(rest) if verb == "train" else of_run(find(rest[0]), rest[1:])
        blank_store(config)
        return start(config, backend=fake_backend(config.launch.kind))
    except LonghaulError as e:
        print(e, file=sys.stderr)
        return e.exit_code


def fake_backend(kind: str, *, module: str = "tests.helpers.fake_worker") -> Backend:
    """`module`: what its ranks run."""
    makers: dict[str, Callable[..., Backend]] = {
        "local": LocalBackend,
        "slurm": SlurmBackend,
        "ssh": SshBackend,
        "ray": RayBackend,
    }
    return makers[kind](module=module)


def blank_store(config: Config) -> None:
    """A store of zeros where the preparation would put it: these ranks read nothing of it."""
    data = json.loads(config.data.model_dump_json())
    keys = store_keys(data, custom_digests={})
    assert keys is not None
    for name in data["sources"]:
        folder = Path(keys.store_folder(name))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train-00000.tokens").write_bytes(bytes(2 * _TOKENS))
        (folder / "train-00000.documents").write_bytes(bytes(8))
        (folder / TOKENIZER).write_text("{}")
        manifest = StoreManifest(
            source=name,
            dtype="uint16",
            vocab_size=300,
            end_of_text_id=0,
            tokenizer_digest=hashlib.sha256(b"{}").hexdigest(),
            preparation_key="",
            code_version=1,
            source_bytes=0,
            skipped_documents=0,
            unigram_entropy_nats=4.25,
            shards=(Shard("train-00000", "train", _TOKENS, 1, "", ""),),
        )
        write_manifest(folder, manifest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
