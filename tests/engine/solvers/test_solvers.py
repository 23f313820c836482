"""Solvers: their steps against the formulas, and what all of them keep to."""

import pytest
import torch

from sdrt.engine.dit.head import DitOut
from sdrt.engine.preset.preset import load
from sdrt.engine.preset.sections import DitConfig
from sdrt.engine.solvers.registry import SOLVERS
from sdrt.engine.solvers.renoise import Renoise

SCHEDULE = load("tiny").schedule
SHAPE = (2, 1, 4, 4, 6)
EACH = pytest.mark.parametrize("name", SOLVERS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(solver) -> list[torch.Tensor]:
    """Return what a step takes after flow and latent: every row of the tables, and noise."""
    return [*solver.tables().values(), *([draw(*SHAPE, seed=2)] if solver.draws else [])]


@EACH
def test_tables_have_a_row_for_each_step(name: str) -> None:
    solver = SOLVERS[name](SCHEDULE)
    tables = solver.tables()
    assert next(iter(tables)) == "timesteps" and tables["timesteps"].shape[1:] == (1,)
    assert {len(table) for table in tables.values()} == {len(SCHEDULE.steps)}
    assert {table.dtype for table in tables.values()} == {torch.float32}


@EACH
def test_a_step_keeps_the_latents_form(name: str) -> None:
    solver = SOLVERS[name](SCHEDULE)
    made = solver(draw(*SHAPE), draw(*SHAPE, seed=1), *arguments(solver))
    assert made.shape == SHAPE and made.dtype == torch.float32


def test_renoise_is_the_formula() -> None:
    """In float64: ``x0 = latent - sigma flow``, then ``(1 - next) x0 + next noise``."""
    solver = Renoise(SCHEDULE)
    flow, latent = draw(*SHAPE), draw(*SHAPE, seed=1)
    timesteps, next_sigmas, noise = arguments(solver)
    assert timesteps.flatten().tolist() == [700, 500] and next_sigmas[-1] == 0
    made = solver(flow, latent, timesteps, next_sigmas, noise)
    place = (solver.timesteps.double() - timesteps.double()).abs().argmin(dim=1)
    sigma = solver.sigmas.double()[place].view(-1, 1, 1, 1, 1)
    after = next_sigmas.double().view(-1, 1, 1, 1, 1)
    x0 = latent.double() - sigma * flow.double()
    expected = (1 - after) * x0 + after * noise.double()
    torch.testing.assert_close(made.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_last_step_of_renoise_keeps_x0() -> None:
    """Reference: the same step with other noise."""
    solver = Renoise(SCHEDULE)
    row = [table[-1:] for table in solver.tables().values()]
    flow, latent = draw(*SHAPE)[:1], draw(*SHAPE, seed=1)[:1]
    made = [solver(flow, latent, *row, draw(*SHAPE, seed=seed)[:1]) for seed in (2, 3)]
    assert torch.equal(*made)


@EACH
def test_head_and_solver_are_one_module(name: str) -> None:
    """Reference: the solver on the head's flow. Only the head has parameters."""
    config = DitConfig(
        dim=12, num_heads=2, ffn_dim=8, num_layers=1, in_dim=SHAPE[2], out_dim=SHAPE[2]
    )
    solver = SOLVERS[name](SCHEDULE)
    module = DitOut(config, *SHAPE[3:], solver)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
    assert {key.split(".")[0] for key, _ in module.named_parameters()} == {"head"}
    x, e, latent = draw(2, 6, 12), draw(2, 1, 12, seed=5), draw(*SHAPE, seed=1)
    with torch.inference_mode():
        made = module(x, e, latent, *arguments(solver))
        expected = solver(module.head(x, e), latent, *arguments(solver))
    assert torch.equal(made, expected)
