"""Compiled ops: which modules an engine imports, and that a trial imports them too."""

import sys
from pathlib import Path

from sdrt.engine.taehv.model import FIRST, FUSED, LAST
from sdrt.export.child import Child
from sdrt.export.ops import op_modules


def test_packages_that_call_compiled_kernels_name_their_ops() -> None:
    assert op_modules({"a": "sdpa"}) == ()
    how = {"a": "hopper", "b": "cudnn", "c": "fused"}
    assert op_modules(how) == ("sdrt.kernels.causal_conv", "sdrt.kernels.ring_attention")
    assert op_modules({FIRST: FUSED, LAST: FUSED}) == ()  # Triton's are in the packages


def test_a_trial_imports_the_modules_of_ops(tmp_path: Path, monkeypatch) -> None:
    """Before anything is loaded: a package that calls an op does not load without its module."""
    (tmp_path / "ops_of_a_test.py").write_text(
        f"from pathlib import Path; Path({str(tmp_path / 'imported')!r}).touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    with Child("sdrt.export.trial_worker", {"ops": ["ops_of_a_test"]}) as child:
        package = {"backend": "inductor", "file": "none.pt2", "sha256": "", "bytes": 0}
        request = {
            "name": "none",
            "folder": str(tmp_path),
            "package": package | {"build_s": 0.0, "arguments": []},
            "device": "cpu",
            "integers": [],
        }
        assert "none" in child.ask(request)["error"]
    assert (tmp_path / "imported").exists()
