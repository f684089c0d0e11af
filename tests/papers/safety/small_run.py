"""A safety-units run of seconds, for tests of the method and of its panel."""

from workbench.papers.safety.safety_units import method as su

SMALL = su.Spec(
    base=None,
    seeds=(0,),
    n_calibration=16,
    n_validation=12,
    n_forbidden=8,
    n_utility=12,
    n_random=1,
    arms=(),
    budget=False,
    n_probe=4,
    probe_ks=(2, 4),
    safety_grid=(0.03,),
    utility_grid=(0.03,),
    redundant_grid=(0.2,),
)
