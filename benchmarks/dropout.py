"""Dropout of a small encoder on a CPU: forward and backward with ours, with torch's own, without.

    python -m benchmarks.dropout --rounds 9

MiniLM's shape (384 wide, 6 layers, 12 heads), 14 rows of 128 packed with four documents each, bf16
products, one thread. All arms have the same weights.

Exit code 1: with ours a step takes more than 1/1.1 of torch's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.paired import CLOCKS, in_turns, judged, machine, speedup, timed, write_result
from trainer.config.sections.model import EncoderShape
from trainer.models.build import build_model
from trainer.models.dropout import Dropout
from trainer.models.encoder import EncoderModel
from trainer.models.heads import HeadSpec

PROMISED = 1.1
ROWS, LENGTH, DOCUMENTS, VOCABULARY, RATE = 14, 128, 4, 8_192, 0.1
_FOUR = HeadSpec("sequence", ("a", "b", "c", "d"), "single_label_classification")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "dropout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    models = {"ours": _model(RATE), "torch": _with_torchs(_model(RATE)), "none": _model(0.0)}
    rows = _rows()

    def step(model: EncoderModel) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(rows, want="sequence").float().square().mean()
        loss.backward()

    arms = {name: (lambda m=model: timed(lambda: step(m))) for name, model in models.items()}
    times = in_turns(arms, given.rounds)
    found = {arm: speedup(times, arm, over="torch", clock=given.clock) for arm in ("ours", "none")}
    kept = judged("ours over torch's", found["ours"], promised=PROMISED)
    print(f"without any: {found['none'].median:.3f} over torch's")
    if given.json:
        write_result(given.json, {"machine": machine(), "times": times, "ratios": found})
    return 0 if kept else 1


def _model(rate: float) -> EncoderModel:
    shape = EncoderShape(
        kind="encoder",
        family="bert",
        attention="sdpa",
        activation_checkpointing=False,
        compile=False,
        loss_chunk_tokens=0,
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1_536,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.02,
        norm_eps=1e-12,
        dropout=rate,
        type_vocab_size=2,
        local_attention=None,
        global_attention_every=None,
    )
    model = build_model(shape, vocab_size=VOCABULARY, dtype=torch.float32, head=_FOUR)
    assert isinstance(model, EncoderModel)
    model.to_empty(device="cpu")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=random)
    return model.train()


def _with_torchs(model: EncoderModel) -> EncoderModel:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    model.hf.config._attn_implementation = "sdpa"
    return model.train()


def _rows() -> dict[str, torch.Tensor]:
    place_T = torch.arange(LENGTH)
    each = LENGTH // DOCUMENTS
    random = torch.Generator().manual_seed(1)
    return {
        "inputs_RT": torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=random),
        "positions_RT": (place_T % each).expand(ROWS, -1),
        "documents_RT": (place_T // each + 1).expand(ROWS, -1),
        "first_E": torch.arange(0, ROWS * LENGTH, each),
    }


if __name__ == "__main__":
    raise SystemExit(main())
