"""Who grows: flags and cohorts, ramps with a guard, and their change during a run."""

from lightning_morpho.rollout.cohort import CohortLog
from lightning_morpho.rollout.compare import ImplementationComparison, Timing, compare_implementations
from lightning_morpho.rollout.flag_file import FlagFile, FlagFileError, Overlay, parse_flags
from lightning_morpho.rollout.flags import (
    ENVIRONMENT_PREFIX,
    cohort_bucket,
    decide,
    decide_layer,
    feature_environment,
    flag_enabled,
    flag_of,
    idle_patterns,
    register_flag,
    with_environment,
)
from lightning_morpho.rollout.guard import Baseline, Guard, RunHealth, StepTimer, Verdict
from lightning_morpho.rollout.live import LiveRollout, RolloutChange
from lightning_morpho.rollout.ramp import Ramp

__all__ = [
    "Baseline",
    "CohortLog",
    "ENVIRONMENT_PREFIX",
    "FlagFile",
    "FlagFileError",
    "Guard",
    "ImplementationComparison",
    "LiveRollout",
    "Overlay",
    "Ramp",
    "RolloutChange",
    "RunHealth",
    "StepTimer",
    "Timing",
    "Verdict",
    "cohort_bucket",
    "compare_implementations",
    "decide",
    "decide_layer",
    "feature_environment",
    "flag_enabled",
    "flag_of",
    "idle_patterns",
    "parse_flags",
    "register_flag",
    "with_environment",
]
