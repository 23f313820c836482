"""The flow-matching schedule against the golden tables."""

import pytest

from sdrt.engine.solvers.schedule import add_noise, denoise_timesteps, flow_table, nearest_sigma


@pytest.mark.parametrize("shift", [5, 8])
def test_tables_match_the_reference(shift, golden, relative_error):
    """Reference: the public scheduler's sigmas and timesteps."""
    tensors, _ = golden("scheduler")
    sigmas, timesteps = flow_table(float(shift))
    assert relative_error(sigmas, tensors[f"sigmas_shift{shift}"]) <= 1e-6
    assert relative_error(timesteps, tensors[f"timesteps_shift{shift}"]) <= 1e-6


def test_forward_noising_matches_the_reference(golden, relative_error):
    """Reference: the public scheduler's noised latents, sigma of the nearest timestep."""
    tensors, _ = golden("scheduler")
    sigma = nearest_sigma(tensors["timestep"], *flow_table(8.0))
    noised = add_noise(tensors["clean"], tensors["noise"], sigma)
    assert relative_error(noised, tensors["noised_shift8"]) <= 1e-6


def test_warped_steps_match_the_reference(golden, relative_error):
    """Reference: Self-Forcing's warped step list."""
    tensors, _ = golden("scheduler")
    steps = denoise_timesteps((1000, 750, 500, 250), 5.0, warp=True)
    assert relative_error(steps, tensors["warped_shift5"]) <= 1e-6
