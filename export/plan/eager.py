"""Plans run eagerly: what packages are compared with, and what FP8 is calibrated on."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from sdrt.engine.module import PackageModule
from sdrt.export.describe import describe
from sdrt.export.plan.plan import Plan, PlannedPackage, as_tuple
from sdrt.export.recipe import Recipe
from sdrt.kernels.dispatch import references
from sdrt.runtime.directory.contents import PackageSpec, TextSpec, WeightsSpec
from sdrt.runtime.directory.manifest import Manifest
from sdrt.runtime.engine import Engine
from sdrt.runtime.programs.program import Program
from sdrt.runtime.session import Session


def with_weights(planned: PlannedPackage, weights: Mapping[str, Tensor]) -> PackageModule:
    """Return a plan's module with its parameters in place.

    Args:
        weights: every tensor that the plan bakes in, by name; others are left out.
    """
    stage = copy.deepcopy(planned.module.stage)
    values = {name: weights[weight] for name, weight in planned.baked.items()}
    stage.load_state_dict(values, strict=False, assign=True)
    if values:
        stage.to(next(iter(values.values())).device)  # the tables too
    return stage


class EagerProgram:
    """A package's module behind the interface of a program; every op runs its plain reference."""

    def __init__(self, planned: PlannedPackage, weights: Mapping[str, Tensor]) -> None:
        """Take what :func:`with_weights` takes; weights that are arguments are not asked for."""
        self._flat = planned.module
        self.stage = with_weights(planned, weights) if planned.bakes else planned.module.stage

    @torch.no_grad()
    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once; results and new states are written into ``arguments``."""
        flat, targets = self._flat, arguments[self._flat.inputs :]
        states = dict(zip(flat.state_names, targets[flat.outputs :], strict=False))
        own = targets[flat.outputs + len(states) :]
        weights = dict(zip(flat.weight_names, own, strict=True)) if own else {}
        keywords = {"states": states} if states else {}
        with references():
            results = functional_call(
                self.stage, weights, tuple(arguments[: flat.inputs]), keywords
            )
        for target, value in zip(targets, (*as_tuple(results), *states.values()), strict=False):
            if value is not target:
                target.copy_(value)


def eager_programs(plan: Plan, weights: Mapping[str, Tensor]) -> dict[str, Program]:
    """Return package -> its eager module, those that bake weights in with their own."""
    return {name: EagerProgram(planned, weights) for name, planned in plan.packages.items()}


def planned_manifest(
    recipe: Recipe, plan: Plan, device: torch.device, text: TextSpec | None = None
) -> Manifest:
    """Return the manifest of a plan before anything of it is built: its packages have no files.

    Args:
        plan: the recipe's.
        text: what encodes prompts; hashed words unless given.
    """
    packages = {
        name: PackageSpec(
            backend=planned.backend,
            file="",
            sha256="",
            bytes=0,
            build_s=0.0,
            arguments=planned.arguments,
        )
        for name, planned in plan.packages.items()
    }
    weights = WeightsSpec(sources={}, synthetic=False, files=())
    text = text or TextSpec(kind="hashed-words")
    return describe(plan, recipe, device, packages, weights, text)


def rehearsal(
    recipe: Recipe,
    plan: Plan,
    programs: Mapping[str, Program],
    tables: Mapping[str, Tensor],
    device: torch.device,
    text: TextSpec | None = None,
    directory: Path | None = None,
) -> Session:
    """Return a session that runs a plan's stages before anything of it is built.

    Args:
        plan: the recipe's.
        programs: package -> what runs in its place.
        tables: the plan's tables, and those weights that are no part of ``programs``.
        text: what encodes prompts, with its files in ``directory``; hashed words unless given.
    """
    manifest = planned_manifest(recipe, plan, device, text)
    engine = Engine(manifest, programs, tables, device, directory, keeps_prompts=False)
    return engine.session(capture=False)
