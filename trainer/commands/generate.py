"""longhaul generate RUN --prompt TEXT: continue a text, shown as it is made.

RUN may be a run, one of its checkpoints, or a folder made by longhaul export.
example: longhaul generate first-run --prompt "def main(" --max-new-tokens 200 --temperature 0.8
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.commands.arguments import add_average, defaults_of, trained_parser
from trainer.commands.ending import ended
from trainer.errors import Exit, Refused


def main(argv: list[str] | None = None) -> int:
    parser = trained_parser("generate", __doc__)
    add_average(parser)
    parser.add_argument("--prompt", default="", help="text to continue; - reads standard input")
    parser.add_argument("--max-new-tokens", type=_positive, default=128)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token")
    parser.add_argument("--top-k", type=int, default=50, help="0: all tokens")
    parser.add_argument("--top-p", type=float, default=0.95, help="1: all tokens")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    return ended(lambda: _generate(given))


def _generate(given: argparse.Namespace) -> Exit:
    from trainer.data.tokenizer import TextTokenizer
    from trainer.dist.device import choose_device
    from trainer.dist.world import Place
    from trainer.engine.model_setup import weight_dtype
    from trainer.export.generate import Sampling, continued
    from trainer.export.trained import load_model, open_trained

    trained = open_trained(
        given.path, step=given.step, defaults=defaults_of(given), average=given.average
    )
    plan = trained.plan
    if plan.config.task.head != "next_token" or plan.decoder_start_id is not None:
        kind = trained.plan.config.task.kind
        raise Refused(
            f"a model of task={kind} does not continue a text; score it with longhaul evaluate "
            "(of chat and seq2seq --answers N shows what it says), or export it and ask it "
            "through transformers"
        )
    folder = given.path if (given.path / "tokenizer.json").is_file() else None
    tokenizer = TextTokenizer.open(folder or Path(trained.plan.stores[0].path))
    prompt = sys.stdin.read() if given.prompt == "-" else given.prompt
    sampling = Sampling(
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        seed=given.seed,
    )
    if not 0 < sampling.top_p <= 1 or sampling.temperature < 0 or sampling.top_k < 0:
        raise Refused("--temperature and --top-k are at least 0, --top-p is above 0 and at most 1")
    device = choose_device(trained.plan.device, Place())
    dtype = weight_dtype(trained.plan.config.precision.kind)
    model = load_model(trained, dtype=dtype, device=device)
    texts = continued(model, tokenizer, prompt, sampling)
    if given.json:
        print(json.dumps({"step": trained.step, "prompt": prompt, "text": "".join(texts)}))
        return Exit.DONE
    print(prompt, end="", flush=True)
    for text in texts:
        print(text, end="", flush=True)
    print()
    return Exit.DONE


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
