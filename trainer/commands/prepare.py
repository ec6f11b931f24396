"""`python -m trainer.commands.prepare CONFIG.json --result RESULT.json`: make the stores.

CONFIG.json is a resolved Config. RESULT.json tells the launcher what the plan needs:

    {"stores": [StorePlan, ...],
     "vocabulary": {"vocab_size", "end_of_text_id", "tokenizer_digest", "tokenizer",
                    "unigram_entropy_nats"}}

The vocabulary is said of text alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.commands.ending import said_of_the_place
from trainer.commands.translating import translator_of
from trainer.config.schema import Config
from trainer.config.sections.data import DataSection
from trainer.errors import LonghaulError
from trainer.plan import StorePlan
from trainer.records.json_file import read_json, write_json
from trainer.records.token_store import TOKENIZER, read_manifest


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul data prepare", usage="longhaul data prepare [RUN] [key=value ...]"
    )
    parser.add_argument("config", type=Path, help="JSON of a resolved configuration")
    parser.add_argument("--result", type=Path, help="where to write the JSON answer")
    given = parser.parse_args(arguments)
    config = Config.model_validate(read_json(given.config))
    try:
        from trainer.data.audit_gate import gate  # numpy and the vendors, after the arguments
        from trainer.data.prepare import prepare

        stores = prepare(config, log=_say, translate=translator_of(config))
        gate(config, stores, log=_say)
        if given.result is None:  # asked for by hand: look at every byte, not at sizes alone
            _verify(config, stores)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    except OSError as e:
        return said_of_the_place(e)
    except KeyboardInterrupt:
        print("interrupted; finished shards are kept, run again to go on", file=sys.stderr)
        return 130
    answer: dict[str, Any] = {"stores": [s.model_dump(mode="json") for s in stores]}
    if isinstance(config.data, DataSection):
        answer["vocabulary"] = vocabulary(stores)
    if given.result is not None:
        write_json(given.result, answer)
    else:
        for store in stores:
            print(f"{store.source}: {store.train_tokens:,} tokens in {store.path}")
    return 0


def _verify(config: Config, stores: list[StorePlan]) -> None:
    """Raises: DataError naming the first damaged file."""
    from trainer.data.example_store import ExampleStore
    from trainer.data.store import TokenStore

    kind = TokenStore if isinstance(config.data, DataSection) else ExampleStore
    for store in stores:
        kind.open(Path(store.path)).verify()


def vocabulary(stores: list[StorePlan]) -> dict[str, Any]:
    """Facts of the tokenizer that all the stores share, and the entropy of their mixture's part."""
    folder = Path(stores[0].path)
    manifests = [read_manifest(Path(store.path)) for store in stores]
    weight = sum(store.weight for store in stores)
    entropy = sum(
        store.weight * manifest.unigram_entropy_nats
        for store, manifest in zip(stores, manifests, strict=True)
    )
    return {
        "vocab_size": manifests[0].vocab_size,
        "end_of_text_id": manifests[0].end_of_text_id,
        "tokenizer_digest": manifests[0].tokenizer_digest,
        "tokenizer": str(folder / TOKENIZER),
        "unigram_entropy_nats": entropy / weight,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
