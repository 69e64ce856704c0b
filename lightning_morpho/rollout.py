"""Who grows: the decision whether a model or a layer is in the cohort, and why."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase

from lightning_morpho.config import RolloutConfig


def cohort_bucket(salt: str, unit: str) -> float:
    """Place of a unit in [0, 100): the same in every process, independent between salts.

    Example:
        >>> round(cohort_bucket("chunked_layers", "model"), 4)
        77.9404
    """
    digest = hashlib.sha256(f"{salt}:{unit}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 * 100


def decide(unit: str, config: RolloutConfig) -> tuple[bool, str]:
    """Whether a unit is on, and why.

    Precedence: disabled, blocklist, allowlist, cohort bucket below the percentage.

    Args:
        unit: Id of the unit: the model's id, or a layer's as ``"<model id>/<layer name>"``. Patterns
            of a layer rollout also match the bare layer name.
        config: The rollout.

    Returns:
        On or off, and the reason in words.

    Example:
        >>> decide("model", RolloutConfig(percentage=25))
        (False, 'cohort bucket 77.94 is not below 25 %')
        >>> decide("model", RolloutConfig(percentage=25, allowlist=("mod*",)))
        (True, 'on the allowlist (`mod*`)')
    """
    if not config.enabled:
        return False, "rollout is disabled"
    names = (unit, unit.partition("/")[2]) if config.unit == "layer" else (unit,)
    for patterns, answer, title in ((config.blocklist, False, "blocklist"), (config.allowlist, True, "allowlist")):
        for pattern in patterns:
            if any(fnmatchcase(name, pattern) for name in names if name):
                return answer, f"on the {title} (`{pattern}`)"
    bucket = cohort_bucket(config.salt, unit)
    if bucket < config.percentage:
        return True, f"cohort bucket {bucket:.2f} is below {config.percentage:g} %"
    return False, f"cohort bucket {bucket:.2f} is not below {config.percentage:g} %"
