"""TRL's packing, in a Python of its own: packing_trl.py JOB.json RESULT.json. Nothing of ours here.

The job: {"lengths": [...], "row_tokens": N}. The result: {"version", strategy: rows}; a row is the
lengths of its pieces. Called as SFTTrainer calls it, with the defaults of datasets' map.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

STRATEGIES = ("bfd", "bfd_split", "wrapped")


def main(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    pack_dataset = importlib.import_module("trl.data_utils").pack_dataset
    found: dict[str, Any] = {"version": metadata.version("trl")}
    for strategy in STRATEGIES:
        examples = Dataset.from_dict({"input_ids": [[0] * n for n in job["lengths"]]})
        packed = pack_dataset(examples, seq_length=job["row_tokens"], strategy=strategy)
        if "seq_lengths" in packed.column_names:
            found[strategy] = packed["seq_lengths"][:]
        else:
            found[strategy] = [[len(row)] for row in packed["input_ids"]]
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
