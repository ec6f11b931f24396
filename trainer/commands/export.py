"""longhaul export RUN: the newest checkpoint (or --step N) as a Hugging Face folder, checked.

example: longhaul export first-run --dtype bf16 --to exported/first-run
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from trainer.commands.arguments import add_average, defaults_of, trained_parser
from trainer.commands.ending import ended
from trainer.errors import Exit
from trainer.records.sample_prompt import typed_prompt
from trainer.records.sizes import bytes_of, size_text


def main(argv: list[str] | None = None) -> int:
    parser = trained_parser("export", __doc__, path="a run, or one checkpoint of it")
    add_average(parser)
    parser.add_argument("--to", type=Path, help="folder to write; RUN/export/step-N if not given")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="as trained if not given")
    parser.add_argument("--max-shard", type=_size, default=5 * 10**9, help="of one file: 5GB")
    parser.add_argument(
        "--adapter", action="store_true", help="what was trained alone, for peft to load over it"
    )
    parser.add_argument("--rows", type=int, default=4, help="of the check; 0: no check")
    given = parser.parse_args(argv)
    return ended(lambda: _export(given))


def _export(given: argparse.Namespace) -> Exit:
    from trainer.commands.rows import rows_to_compare
    from trainer.data.exported_tokenizer import tokenizer_of
    from trainer.export.adapter import export_adapter
    from trainer.export.export import export_folder
    from trainer.export.trained import open_trained

    trained = open_trained(
        given.path, step=given.step, defaults=defaults_of(given), average=given.average
    )
    precision = trained.plan.config.precision.kind
    dtype = given.dtype or {"bf16": "bf16", "fp16": "fp16"}.get(precision, "fp32")
    name = f"step-{trained.step:08d}" + ("-adapter" if given.adapter else "")
    folder = given.to or _run_folder(given.path) / "export" / name
    rows = rows_to_compare(trained.plan, given.rows)
    tokenizer = tokenizer_of(trained.plan)
    if given.adapter:
        done = export_adapter(
            trained, folder, dtype=dtype, tokenizer=tokenizer, rows=rows.batches, rows_are=rows.what
        )
    else:
        done = export_folder(
            trained,
            folder,
            dtype=dtype,
            max_shard_bytes=given.max_shard,
            tokenizer=tokenizer,
            rows=rows.batches,
            rows_are=rows.what,
        )
    check = done.check
    if given.json:
        value = {
            "folder": str(done.folder),
            "step": trained.step,
            "dtype": dtype,
            "files": done.files,
            "bytes": done.bytes,
            "max_logit_difference": check.max_logit_difference if check else None,
            "checked_on": f"{check.rows} {check.what}" if check else None,
        }
        print(json.dumps(value))
        return Exit.DONE
    print(f"exported step {trained.step} as {dtype} to {done.folder}")
    print(f"  {done.files} weight file(s), {size_text(done.bytes)}")
    by = "peft" if given.adapter else "transformers"
    if check is not None:
        print(
            f"  {by} loads it; logits equal the trained model's to "
            f"{check.max_logit_difference:.1e} on {check.rows} {check.what}"
        )
    else:
        print(f"  not checked against the trained model, as --rows {given.rows} asks")
    if given.adapter or trained.plan.config.task.data == "examples":
        return Exit.DONE
    prompt = typed_prompt(trained.plan.config.model_dump(mode="json"))
    print(f"  next: longhaul generate {shlex.quote(str(done.folder))} --prompt {prompt}")
    return Exit.DONE


def _run_folder(path: Path) -> Path:
    return path.parent.parent if path.name.startswith("step-") else path


def _size(text: str) -> int:
    size = bytes_of(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500MB or 5GB")
    return size


if __name__ == "__main__":
    raise SystemExit(main())
