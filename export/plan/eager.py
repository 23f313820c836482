"""Planned plans run eagerly, weights included: what plans are compared with and calibrated on."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

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
        weights: every tensor that the plan bakes in, by name.
    """
    stage = copy.deepcopy(planned.module.stage)
    values = {name: weights[weight] for name, weight in planned.baked.items()}
    stage.load_state_dict(values, strict=False, assign=True)
    return stage


class EagerPlan:
    """A plan's module behind the interface of a plan; every op runs its plain reference."""

    def __init__(self, planned: PlannedPackage, weights: Mapping[str, Tensor]) -> None:
        """Take what :func:`with_weights` takes; buffers move to the weights' device."""
        self._flat = planned.module
        self.stage = with_weights(planned, weights)
        for weight in weights.values():
            self.stage.to(weight.device)
            break

    @torch.no_grad()
    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once; results and new states are written into ``arguments``."""
        inputs, first = self._flat.inputs, self._flat.inputs + self._flat.outputs
        states = dict(zip(self._flat.state_names, arguments[first:], strict=True))
        keywords = {"states": states} if states else {}
        with references():
            results = self.stage(*arguments[:inputs], **keywords)
        made = (*as_tuple(results), *states.values())
        for target, value in zip(arguments[inputs:], made, strict=True):
            target.copy_(value)


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
