"""The builder's phases as one fraction."""

from sdrt.export.tensorrt.monitor import Phases


def test_phases_nest():
    """Reference: each phase is one step of the phase around it."""
    phases = Phases()
    phases.start("build", None, 4)
    assert (phases.name, phases.fraction) == ("build", 0.0)
    phases.start("clone", "build", 2)
    phases.step("clone", 0)
    assert (phases.name, phases.fraction) == ("clone", 0.125)
    phases.step("clone", 1)
    phases.finish("clone")
    phases.step("build", 0)
    assert (phases.name, phases.fraction) == ("build", 0.25)
    phases.start("tactics", "build", 2)
    phases.start("node", "tactics", 10)
    phases.step("node", 4)
    assert (phases.name, phases.fraction) == ("node", 0.25 + 0.25 * 0.5 * 0.5)


def test_the_fraction_never_falls():
    """A phase may start again, or end without its last step; the bar stays where it is."""
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("inner", "build", 1)
    phases.step("inner", 0)
    seen = [phases.fraction]
    phases.finish("inner")
    seen.append(phases.fraction)
    phases.start("inner", "build", 1)
    seen.append(phases.fraction)
    phases.step("build", 0)
    phases.step("build", 1)
    phases.step("build", 2)  # one more than was announced
    seen.append(phases.fraction)
    assert seen == [0.5, 0.5, 0.5, 1.0]
    phases.finish("build")
    phases.finish("build")
    assert phases.name == ""
