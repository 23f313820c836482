"""The process in which new packages are tried out, as the runtime will load and run them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from sdrt.export.child import Requests
from sdrt.export.plan.examples import example_arguments
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.contents import PackageSpec
from sdrt.runtime.programs.loaders import LOADERS, register_ops


def serve(requests: Requests) -> None:
    """Load and run the packages that are asked for; a crash ends the process.

    The first request is ``{"ops"}``, modules that register what packages call. Each other one is
    ``{"name", "folder", "package", "device", "integers"}``; the answer is ``{"error"}``, null if
    all went well.
    """
    pending = iter(requests)
    register_ops(next(pending)["ops"])
    for request in pending:
        error = None
        try:
            try_one(
                request["name"],
                Path(request["folder"]),
                PackageSpec.model_validate(request["package"]),
                torch.device(request["device"]),
                dict(request["integers"]),
            )
        except (RuntimeError, SdrtError) as failure:
            error = str(failure).strip().splitlines()[0]
        requests.answer({"error": error})


@torch.inference_mode()
def try_one(
    name: str,
    folder: Path,
    package: PackageSpec,
    device: torch.device,
    integers: Mapping[int, int],
) -> None:
    """Load a package as a session does, and run it once on noise.

    Args:
        integers: argument -> what it is filled with; other integers are zeros.
    Raises:
        RuntimeError, SdrtError: it does not load, or does not run.
    """
    program = LOADERS[package.backend].load(folder, {name: package}, device)[name]
    # TensorRT does not run on the default stream.
    with torch.cuda.stream(torch.cuda.Stream(device) if device.type == "cuda" else None):
        arguments = example_arguments(package.arguments, device)
        for argument, value in integers.items():
            arguments[argument].fill_(value)
        program.run(arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Requests())
