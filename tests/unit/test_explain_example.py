"""Which tokens a class rests on, against integrated gradients through transformers' own class."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.encoders import hugging_face
from tests.helpers.task_cases import case_plan
from trainer.build import build_engine, starting_values
from trainer.commands.explain import explained
from trainer.commands.rows import held_out_rows
from trainer.dist.world import Alone
from trainer.errors import Refused
from trainer.plan import RunPlan

GIVEN = ["engine=plain", "model.dropout=0", "model.initializer_range=0.5"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return case_plan(tmp_path_factory.mktemp("explain"), "classify", GIVEN)


def _model(plan: RunPlan) -> Any:
    engine = build_engine(plan, Alone())
    engine.load(starting_values(plan, engine), step=0)
    return engine.model.eval()


def test_shares_are_those_of_the_plain_formula(
    plan: RunPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an example that is the second of a packed row: its own tokens, as if it stood alone."""
    model = _model(plan)
    (batch, *_) = held_out_rows(plan, 5)
    examples = [
        (row, number)
        for row, documents in enumerate(batch.fields["documents_RT"])
        for number in range(1, int(documents.max()) + 1)
    ]
    chosen_one = next(i for i, (_, number) in enumerate(examples) if number == 2)
    row, number = examples[chosen_one]
    found = explained(plan, model, chosen_one, device=torch.device("cpu"))
    ids = batch.fields["inputs_RT"][row][batch.fields["documents_RT"][row] == number][None]
    theirs = hugging_face(model).eval()
    embeddings = theirs.get_input_embeddings()(ids).detach()
    total = torch.zeros_like(embeddings, dtype=torch.float64)
    with torch.no_grad():
        chosen = int(theirs(inputs_embeds=embeddings).logits.argmax())
    for point in range(64):
        at = (embeddings * ((point + 0.5) / 64)).requires_grad_()
        logit = theirs(inputs_embeds=at).logits[0, chosen]
        total += torch.autograd.grad(logit, at)[0].double()
    expected = (total / 64 * embeddings.double()).sum(-1)[0]
    assert found.label == plan.stores[0].labels[chosen]
    assert found.shares == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
    assert len(found.tokens) == ids.shape[1]
    assert found.tokens[0] == "[CLS]"
    assert found.as_json()["tokens"][0] == ["[CLS]", found.shares[0]]
    found.show()
    assert found.by == ("captum" if find_spec("captum") else "longhaul")
    assert f"{found.shares[1]:+9.4f}  {found.tokens[1]}" in capsys.readouterr().out


def test_what_cannot_be_explained_is_refused(plan: RunPlan, tmp_path: Path) -> None:
    model = _model(plan)
    with pytest.raises(Refused, match=r"--explain 999: so many examples are not held out"):
        explained(plan, model, 999, device=torch.device("cpu"))
    tags = case_plan(tmp_path, "tag", ["engine=plain"])
    with pytest.raises(Refused, match=r"the class of a text rests on .* task=tag has none"):
        explained(tags, model, 0, device=torch.device("cpu"))
