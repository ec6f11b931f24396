"""Prompts that are read both ways: what sees what, packed or apart, in training and when asked."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import task_cases
from tests.helpers.models import VOCAB, hugging_face, tiny_shape, wide_model
from tests.helpers.trained_run import trained_by
from trainer.batch import IGNORED, ExampleBatch
from trainer.commands import export
from trainer.errors import Exit, ModelError
from trainer.evals.generated import Decoding, answers
from trainer.evals.likelihood import Continuation, log_likelihoods
from trainer.export.trained import load_model, open_trained
from trainer.models.attention import packing_leak, prompted_logits, refuse_leak
from trainer.models.language_model import LanguageModel
from trainer.objectives.prefix_lm import prompts_of
from trainer.tasks.answers import Answers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_CPU = torch.device("cpu")
_X = IGNORED
FAMILIES = ("llama", "mistral", "qwen3", "gpt2", "gpt_neox")


def _model(family: str, attention: str = "sdpa") -> LanguageModel:
    return wide_model(tiny_shape(family, attention=attention, sliding_window=None), std=0.3)


def _said_alone(theirs: Any, ids: list[int], *, prompt: int) -> torch.Tensor:
    """(T, V): transformers' own class on one example, its mask written place by place."""
    mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min)
    for query in range(len(ids)):
        for key in range(len(ids)):
            if key <= query or (query < prompt and key < prompt):
                mask[0, 0, query, key] = 0.0
    with torch.no_grad():
        said = theirs(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False)
    logits: torch.Tensor = said.logits[0]
    return logits


def test_a_prompt_ends_where_the_first_label_stands() -> None:
    labels = torch.tensor([[_X, _X, 7, 8, _X, 5, 6, _X, _X], [_X, _X, _X, 3, 4, _X, _X, _X, _X]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3]])
    prompts = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1, 1]]).bool()
    assert torch.equal(prompts_of(labels, positions), prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_examples_say_what_transformers_says_of_each_alone(family: str) -> None:
    """Two examples and padding in a row: logits, the loss, and its gradient."""
    model = _model(family)
    theirs = hugging_face(model)
    draw = torch.Generator().manual_seed(11)
    drawn = [torch.randint(VOCAB, (n,), generator=draw).tolist() for n in (9, 6)]
    prompts = (5, 3)
    inputs = torch.tensor([drawn[0] + drawn[1] + [0, 0]])
    positions = torch.tensor([[*range(9), *range(6), 0, 0]])
    labels = torch.full_like(inputs, IGNORED)
    labels[0, 4:9] = torch.tensor([*drawn[0][5:], 3])
    labels[0, 11:15] = torch.tensor([*drawn[1][3:], 3])
    apart = [_said_alone(theirs, ids, prompt=n) for ids, n in zip(drawn, prompts, strict=True)]
    with torch.no_grad():
        said = model.logits(inputs, positions, prompts_RT=prompts_of(labels, positions))[0]
        causal = model.logits(inputs, positions)[0]
    torch.testing.assert_close(said[:15], torch.cat(apart), atol=1e-4, rtol=1e-4)
    assert (said[:4] - causal[:4]).abs().max() > 1e-2

    batch = ExampleBatch(
        {"inputs_RT": inputs, "positions_RT": positions, "labels_RT": labels}, (0,), 9, 15
    )
    expected = F.cross_entropy(torch.cat(apart).double(), labels[0, :15], reduction="sum").item()
    task = Answers(prefix_lm=True)
    loss = task.loss_sum(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert task.score(model, batch)["loss"] == pytest.approx(expected, rel=1e-5)
    assert Answers().loss_sum(model, batch).item() != pytest.approx(expected, rel=1e-3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())


def test_the_probe_asks_with_prompts_and_sees_one_that_leaks() -> None:
    model = _model("llama")
    assert packing_leak(prompted_logits(model), device=_CPU) < 1e-5

    def leaking(inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        along = torch.arange(inputs.shape[1]).unsqueeze(0)
        return model.logits(inputs, along, prompts_RT=positions < 5)

    with pytest.raises(ModelError, match="see each other"):
        refuse_leak(leaking, name="llama", device=_CPU)


def _greedy(theirs: Any, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(_said_alone(theirs, ids, prompt=len(prompt))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gpt2", "eager")])
def test_a_batch_is_answered_as_each_prompt_that_is_read_both_ways(
    family: str, attention: str
) -> None:
    model = _model(family, attention)
    model.reads_prompts_whole = True
    theirs = hugging_face(_model(family))
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(2, VOCAB, (n,), generator=draw).tolist() for n in (3, 11, 1, 7)]
    how = Decoding(max_new_tokens=5, batch_size=3, ends={VOCAB + 1}, padding_id=0)
    found = dict(answers(model, prompts, how))
    expected = [_greedy(theirs, prompt, 5) for prompt in prompts]
    assert [found[number] for number in range(4)] == expected
    model.reads_prompts_whole = False
    assert [dict(answers(model, prompts, how))[number] for number in range(4)] != expected


def test_beams_start_from_the_prompt_that_was_read_both_ways() -> None:
    """Held against two beams by hand, of the sums of log-probabilities."""
    model = _model("llama")
    model.reads_prompts_whole = True
    theirs = hugging_face(model)
    prompts = [[5, 9, 30, 2, 61], [17, 4, 8]]
    how = Decoding(max_new_tokens=4, beams=2, batch_size=2, ends={VOCAB + 1}, padding_id=0)
    found = dict(answers(model, prompts, how))
    for number, prompt in enumerate(prompts):
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(4):
            longer = []
            for nats, said in beams:
                logits = _said_alone(theirs, [*prompt, *said], prompt=len(prompt))[-1]
                best = torch.log_softmax(logits, -1).topk(2)
                longer += [
                    (nats + value, [*said, token])
                    for value, token in zip(
                        best.values.tolist(), best.indices.tolist(), strict=True
                    )
                ]
            beams = sorted(longer, reverse=True)[:2]
        assert found[number] == beams[0][1]


def test_choices_are_weighed_after_a_prompt_that_is_read_both_ways() -> None:
    model = _model("qwen3")
    model.reads_prompts_whole = True
    theirs = hugging_face(model)
    asked = [Continuation((5, 9, 30), (7, 8)), Continuation((4, 4, 61, 12, 3), (9,))]
    found = dict(log_likelihoods(model, asked, batch_size=2))
    for number, one in enumerate(asked):
        ids = [*one.prompt, *one.answer]
        logits = _said_alone(theirs, ids[:-1], prompt=len(one.prompt))[len(one.prompt) - 1 :]
        expected = -F.cross_entropy(logits.double(), torch.tensor(one.answer), reduction="sum")
        assert found[number] == pytest.approx(expected.item(), rel=1e-4)


def test_a_run_answers_and_its_export_tells_how_to_ask(tmp_path: Path) -> None:
    transformers: Any = import_module("transformers")
    plan = task_cases.case_plan(
        tmp_path, "prefix_lm", ["engine=plain", "observers.tensorboard.enabled=false"]
    )
    run = trained_by(plan, tmp_path / "runs" / "prefix_lm")
    trained = open_trained(run.root)
    ours = load_model(trained, dtype=torch.float32, device=_CPU)
    assert ours.reads_prompts_whole
    folder = tmp_path / "exported"
    assert export.main([str(run.root), "--to", str(folder), "--dtype", "fp32"]) == Exit.DONE
    again = load_model(open_trained(folder), dtype=torch.float32, device=_CPU)
    assert again.reads_prompts_whole
    how = Decoding(max_new_tokens=6, ends={-1}, padding_id=0)
    prompt = [4, 9, 12, 30, 7, 21]
    said = [dict(answers(model, [prompt], how))[0] for model in (ours, again)]
    assert said[0] == said[1]

    card = (folder / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.update(max_new_tokens=6, eos_token_id=None, pad_token_id=0)
    names: dict[str, Any] = {"model": model, "ids": torch.tensor([prompt])}
    exec(snippet, names)  # what a user copies
    assert names["said"][0, len(prompt) :].tolist() == said[0]
