"""Every engine keeps the promises of engine/base.py: same numbers, same state, on every layout."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from tests.contract import engine_cases as cases
from tests.contract.engine_cases import Case, Result, Tensors
from tests.helpers.ranks import RankPool
from trainer.config.sections.training import PrecisionSection
from trainer.engine.fragments import create_moments
from trainer.engine.model_setup import settle
from trainer.engine.plain import PlainEngine
from trainer.errors import ConfigError, ModelError
from trainer.records.fragment import MASTER

STAGES = (0, 1, 2, 3)
OURS = ("plain", "canonical")  # without DeepSpeed
STEPS = {"adamw": 20, "sgd": 3}  # a wrong scale shows in the first step of SGD


def whole(ranks: list[Result]) -> Tensors:
    return cases.whole(part for result in ranks for part in result.fragments)


def run(pool: RankPool, world_size: int, wanted: list[Case]) -> list[list[Result]]:
    """The results of all ranks, case by case."""
    return list(zip(*pool.run(world_size, cases.run_all, wanted), strict=True))  # type: ignore[arg-type]


def apart(got: Tensors, wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of the masters."""
    masters = {name: values for (name, kind), values in got.items() if kind == MASTER}
    assert masters.keys() == wanted.keys()
    return max(float((masters[n] - wanted[n]).abs().max()) for n in wanted)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_fp32_equals_a_plain_pytorch_loop(ranks: RankPool, world_size: int) -> None:
    wanted = [
        Case(engine=engine, micro_steps=m, optimizer=o, steps=STEPS[o])
        for engine in ((*OURS, *STAGES) if world_size == 1 else ("canonical", *STAGES))
        for m, o in itertools.product((1, 2, 4), STEPS)
    ]
    reference = {o: cases.independent(STEPS[o], o) for o in STEPS}
    for case, results in zip(wanted, run(ranks, world_size, wanted), strict=True):
        losses, weights = reference[case.optimizer]
        # Measured: AdamW 1.2e-6 and 6e-8, SGD 2.4e-7 and 6e-8. A wrong scale shows in SGD only.
        loss_bound, weight_bound = (5e-6, 5e-5) if case.optimizer == "adamw" else (1e-6, 1e-6)
        off = max(abs(a - b) for a, b in zip(results[0].losses, losses, strict=True))
        assert off <= loss_bound, case
        assert apart(whole(results), weights) <= weight_bound, case


@pytest.mark.parametrize("fault", ["average over ranks", "average over micro-steps"])
def test_a_planted_fault_is_seen(ranks: RankPool, fault: str) -> None:
    wanted = [Case(engine=s, micro_steps=2, optimizer="sgd", steps=1, fault=fault) for s in (1, 3)]
    losses, weights = cases.independent(1, "sgd")
    for results in run(ranks, 2, wanted):
        assert abs(results[0].losses[0] - losses[0]) <= 1e-6, "the first loss cannot show it"
        assert apart(whole(results), weights) > 1e-3


def test_sixteen_bits_stay_close_to_plain(ranks: RankPool) -> None:
    kinds = [("bf16", "fp32"), ("bf16", "weights"), ("autocast", "fp32")]
    reference = {
        kind: run(ranks, 1, [Case(engine="plain", precision=kind[0], accumulate_in=kind[1])])[0]
        for kind in kinds
    }
    wanted = [
        Case(engine=stage, precision=kind[0], accumulate_in=kind[1], micro_steps=2)
        for kind in kinds
        for stage in STAGES
        if (stage, kind[0]) != (0, "bf16")
    ]
    for case, results in zip(wanted, run(ranks, 2, wanted), strict=True):
        plain = reference[case.precision, case.accumulate_in]
        off = max(abs(a - b) for a, b in zip(results[0].losses, plain[0].losses, strict=True))
        # Measured 7.1e-4; another width gave 8.6e-4 with sums in bf16, 6.2e-4 in fp32.
        assert off <= 1e-3, case
        masters = {name: v for (name, kind), v in whole(list(plain)).items() if kind == MASTER}
        # Measured 2.0e-3: AdamW moves an element by the rate, 1e-3, whatever its gradient's size,
        # so where rounding decides a gradient's sign two runs part by twice the rate a step.
        assert apart(whole(results), masters) <= 3e-3, case


def test_state_is_bit_identical_on_every_other_layout(ranks: RankPool) -> None:
    for precision in ("fp32", "bf16"):
        first, longer = (Case(engine=2, precision=precision, steps=n) for n in (3, 5))
        state = whole(run(ranks, 2, [first])[0])
        goes_on = run(ranks, 2, [longer])[0][0].losses[3:]
        for world_size, engines in (
            (3, (3, 1, 0, "canonical")),
            (1, (1, "plain", 3)),
            (2, (3, "canonical")),
        ):
            wanted = [
                (Case(engine=e, precision=precision, steps=2), state, 3)
                for e in engines
                if not (e == 0 and precision == "bf16")
            ]
            by_rank = ranks.run(world_size, cases.resume_all, wanted)
            for (case, _, _), *results in zip(wanted, *by_rank, strict=True):
                loaded = cases.whole(part for r in results for part in r[0])
                assert loaded.keys() == state.keys()
                assert all(torch.equal(loaded[k], state[k]) for k in state), case
                off = max(abs(a - b) for a, b in zip(results[0][1].losses, goes_on, strict=True))
                # Weights not refreshed: 0.7 off; moments not counted: 0.03.
                assert off <= {"fp32": 5e-6, "bf16": 1e-3}[precision], case  # 1.2e-6, 3.4e-5


@pytest.mark.parametrize("optimizer", ["momentum", "muon"])
def test_plain_to_stage_3_and_back_changes_no_bit(ranks: RankPool, optimizer: Any) -> None:
    plain, three = (Case(engine=e, optimizer=optimizer, steps=3) for e in ("plain", 3))
    state = whole(run(ranks, 1, [plain])[0])
    there = ranks.run(3, cases.resume_all, [(three, state, 3)])
    on_three = cases.whole(part for r in there for part in r[0][0])
    back = (plain, on_three, 3)
    again = cases.whole(ranks.run(1, cases.resume_all, [back])[0][0][0])
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_resume_on_the_same_layout_is_bit_identical(ranks: RankPool) -> None:
    """Dropout is on: it is reseeded by step, so nothing is lost with the process."""
    kinds = [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "weights")]
    layouts = [(s, p, a) for s in (1, 2, 3) for p, a in kinds] + [
        (0, "autocast", "fp32"),
        ("canonical", "bf16", "fp32"),
    ]
    common = {"dropout": 0.2, "micro_steps": 2}
    four, two = (
        [Case(engine=s, precision=p, accumulate_in=a, steps=n, **common) for s, p, a in layouts]
        for n in (4, 2)
    )
    unbroken, halves = run(ranks, 2, four), run(ranks, 2, two)
    wanted = [(c, whole(h), 2) for c, h in zip(two, halves, strict=True)]
    by_rank = ranks.run(2, cases.resume_all, wanted)
    for case, all_at_once, *resumed in zip(two, unbroken, *by_rank, strict=True):
        assert all_at_once[0].losses[2:] == resumed[0][1].losses, case
        assert all_at_once[0].norms[2:] == resumed[0][1].norms, case
        ended = cases.whole(part for r in resumed for part in r[1].fragments)
        assert all(torch.equal(ended[k], v) for k, v in whole(all_at_once).items()), case


def test_moments_exist_before_the_first_step(ranks: RankPool) -> None:
    wanted = [
        Case(engine=e, optimizer=o, steps=0)
        for e in (*OURS, *STAGES)
        for o in ("adamw", "momentum", "sgd")
    ]
    kinds = {
        "adamw": {MASTER, "exp_avg", "exp_avg_sq"},
        "momentum": {MASTER, "momentum_buffer"},
        "sgd": {MASTER},
    }
    for case, results in zip(wanted, run(ranks, 1, wanted), strict=True):
        state = whole(results)
        assert {kind for _, kind in state} == kinds[case.optimizer]
        for (name, kind), values in state.items():
            start = cases.drawn(name, values.shape) if kind == MASTER else torch.zeros(())
            assert kind != MASTER or torch.equal(values, start), case
            assert kind == MASTER or not values.any(), case


def test_shares_of_stage_0_are_balanced(ranks: RankPool) -> None:
    results = run(ranks, 3, [Case(engine=0, steps=0)])[0]
    sizes = [sum(f.length for f, _ in r.fragments if f.kind == MASTER) for r in results]
    assert max(sizes) - min(sizes) <= 1
    whole(results)


def test_a_loss_that_is_no_number_leaves_the_state_alone(ranks: RankPool) -> None:
    wanted = [Case(engine=e, steps=1) for e in (*OURS, *STAGES)]
    wanted += [
        Case(engine=e, precision="bf16", accumulate_in=a, steps=1)
        for e in (*OURS, 1, 2, 3)
        for a in ("fp32", "weights")
    ]
    seen = ranks.run(1, cases.poison_all, wanted)[0]
    for case, (norm, unharmed) in zip(wanted, seen, strict=True):
        assert not math.isfinite(norm), case
        assert unharmed, case


def test_groups_that_deepspeed_makes_time_out(ranks: RankPool) -> None:
    assert ranks.run(2, cases.group_timeouts, Case(engine=2), 33.0) == [{33.0}, {33.0}]


def test_offloading_to_the_host_changes_nothing(ranks: RankPool) -> None:
    on_host = (("offload_optimizer", "cpu"),)
    wanted = [
        Case(engine=2, steps=3, micro_steps=2, changes=on_host),
        Case(engine=3, steps=3, micro_steps=2, changes=(*on_host, ("offload_parameters", "cpu"))),
    ]
    losses, weights = cases.independent(3, "adamw")
    for case, results in zip(wanted, run(ranks, 2, wanted), strict=True):
        assert max(abs(a - b) for a, b in zip(results[0].losses, losses, strict=True)) <= 5e-6
        assert apart(whole(results), weights) <= 5e-5, case


def test_muon_on_shards_equals_muon_on_matrices(ranks: RankPool) -> None:
    [plain] = run(ranks, 1, [Case(engine="plain", optimizer="muon", steps=6)])
    masters = {name: v for (name, kind), v in whole(list(plain)).items() if kind == MASTER}
    for world_size in (2, 3):
        wanted = [Case(engine=s, optimizer="muon", steps=6, micro_steps=2) for s in STAGES]
        for case, results in zip(wanted, run(ranks, world_size, wanted), strict=True):
            off = max(abs(a - b) for a, b in zip(results[0].losses, plain[0].losses, strict=True))
            assert off <= 5e-6, case
            off = max(abs(a - b) for a, b in zip(results[0].norms, plain[0].norms, strict=True))
            assert off <= 1e-5, case
            assert apart(whole(results), masters) <= 5e-5, case
            assert whole(results).keys() == whole(list(plain)).keys()


def test_between_steps_of_stage_3_a_rank_holds_its_share(ranks: RankPool) -> None:
    sizes = cases.drawn_sizes()
    padding, small = len(sizes), sum(n for n in sizes if n <= 25)  # small ones stay whole
    for resident, kept in ranks.run(2, cases.weights_held):
        assert resident <= sum(sizes) // 2 + padding + small
        assert not kept, f"autograd keeps gathered weights: {kept}"


def test_parameters_become_real_one_at_a_time() -> None:
    net = cases.make_model(Case(engine="plain"))
    whole_at_once = []

    def give_away(parameter: torch.nn.Parameter) -> None:
        whole_at_once.append(parameter.numel())
        others = [p.numel() for p in net.parameters() if p.requires_grad and not p.is_meta]
        assert sum(others) == 0, "another one is still whole"
        parameter.data = torch.empty(0)

    settle(net, dtype=torch.float32, device=torch.device("cpu"), each=give_away)
    assert sorted(whole_at_once)[-1] == max(cases.drawn_sizes())


def test_a_checkpointed_block_trains_the_same(ranks: RankPool) -> None:
    wanted = [Case(engine=s, steps=3, micro_steps=2, checkpointed=True) for s in (2, 3)]
    losses, weights = cases.independent(3, "adamw")
    for results in run(ranks, 2, wanted):
        assert max(abs(a - b) for a, b in zip(results[0].losses, losses, strict=True)) <= 5e-6
        assert apart(whole(results), weights) <= 5e-5


def test_a_model_made_with_real_values_is_taken_as_well(ranks: RankPool) -> None:
    wanted = [Case(engine=e, steps=2, meta=False) for e in ("plain", 2, 3)]
    losses, _ = cases.independent(2, "adamw")
    for results in run(ranks, 1, wanted):
        assert results[0].losses == pytest.approx(losses, abs=5e-6)


def test_values_that_nobody_would_fill_are_refused() -> None:
    device = torch.device("cpu")
    for attribute, said in (("frozen", "frozen parameter frozen"), ("waves", "buffer waves")):
        net = cases.make_model(Case(engine="plain"))
        setattr(net, attribute, getattr(cases.meta_net(), attribute))
        with pytest.raises(ModelError, match=said):
            settle(net, dtype=torch.float32, device=device)


def test_plain_refuses_fp16() -> None:
    precision = PrecisionSection(kind="fp16", accumulate_in="fp32")
    with pytest.raises(ConfigError, match="loss scale"):
        PlainEngine(
            lambda: cases.make_model(Case(engine="plain")),
            lambda named: cases.make_optimizer("sgd", named),
            device=torch.device("cpu"),
            precision=precision,
            max_grad_norm=0.0,
        )


def test_an_optimizer_with_unknown_moments_is_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adagrad([p])
    with pytest.raises(TypeError, match="Adagrad"):
        create_moments(optimizer, [(p, optimizer.param_groups[0])])
