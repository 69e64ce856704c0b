"""The decision whether a unit is in a flag's cohort, and why."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from lightning_morpho.checks import suggest
from lightning_morpho.rollout_config import FLAGS, FlagConfig, RolloutConfig

CHUNKED_LAYERS = "chunked_layers"
ENVIRONMENT_PREFIX = "MORPHO_FEATURE_"


def register_flag(name: str, default: FlagConfig | None = None) -> None:
    """Make a further flag known; it becomes a key of ``rollout.flags``.

    Args:
        name: Lower-case letters, digits and underscores.
        default: Who has it where nothing is configured; None: nobody.

    Raises:
        ValueError: If the name is not such a one, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"`name` must be of lower-case letters, digits and underscores, got {name!r}.")
    if name in (CHUNKED_LAYERS, *FLAGS):
        raise ValueError(f"The flag `{name}` is registered already; the flags are {[CHUNKED_LAYERS, *FLAGS]}.")
    FLAGS[name] = replace(default or FlagConfig(), salt=(default.salt if default else "") or name)


def flag_of(config: RolloutConfig, name: str) -> FlagConfig:
    """The configuration of one flag.

    Raises:
        ValueError: For a flag that is not registered.
    """
    if name == CHUNKED_LAYERS:
        return config
    if name not in config.flags:
        raise ValueError(f"No flag `{name}`: {suggest(name, [CHUNKED_LAYERS, *FLAGS])}")
    return config.flags[name]


def cohort_bucket(salt: str, unit: str) -> float:
    """Place of a unit in [0, 100): the same in every process, independent between salts.

    Example:
        >>> round(cohort_bucket("chunked_layers", "model"), 4)
        77.9404
    """
    digest = hashlib.sha256(f"{salt}:{unit}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 * 100


def decide(unit: str, config: FlagConfig) -> tuple[bool, str]:
    """Whether a unit is on, and why.

    Precedence: disabled, blocklist, allowlist, cohort bucket below the percentage.

    Args:
        unit: Id of the unit: the model's id, or a layer's as ``"<model id>/<layer name>"``. Patterns
            of a layer rollout also match the bare layer name, those of ``unit: both`` the model's id too.
        config: The flag.

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
    model, _, layer = unit.rpartition("/")
    names = {"model": (unit,), "layer": (unit, layer), "both": (unit, layer, model)}[config.unit]
    for patterns, answer, title in ((config.blocklist, False, "blocklist"), (config.allowlist, True, "allowlist")):
        for pattern in patterns:
            if any(fnmatchcase(name, pattern) for name in names if name):
                return answer, f"on the {title} (`{pattern}`)"
    # `both`: the unit farthest from the cohort decides.
    members = (model, unit) if config.unit == "both" else (unit,)
    bucket = max(cohort_bucket(config.salt, member) for member in members)
    comparison = "is below" if bucket < config.percentage else "is not below"
    return bucket < config.percentage, f"cohort bucket {bucket:.2f} {comparison} {config.percentage:g} %"


def decide_layer(model_id: str, layer: str, config: FlagConfig) -> tuple[bool, str]:
    """Whether a layer of a model is on, and why, whatever the flag's unit.

    Example:
        >>> decide_layer("model", "net.0", RolloutConfig(percentage=25))
        (False, 'cohort bucket 77.94 is not below 25 %')
        >>> decide_layer("model", "net.0", RolloutConfig(percentage=25, unit="layer"))
        (False, 'cohort bucket 43.98 is not below 25 %')
    """
    return decide(model_id if config.unit == "model" else f"{model_id}/{layer}", config)


def idle_patterns(patterns: Sequence[str], unit: str, model_id: str, layers: Sequence[str]) -> list[str]:
    """The patterns of a list that are meant for layers of this model and match none of them.

    A rollout of whole models has no such patterns, and neither has a name that may be another model's.

    Example:
        >>> idle_patterns(["net.*", "nte.0", "other/net.9", "model/net.9"], "layer", "model", ["net.0", "net.2"])
        ['nte.0', 'model/net.9']
    """
    if unit == "model":
        return []
    units = [name for layer in layers for name in (f"{model_id}/{layer}", layer)]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in units)]
    own = [(pattern, pattern.rpartition("/")[0]) for pattern in idle]
    return [pattern for pattern, model in own if (model == model_id if model else unit == "layer")]


def feature_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables ``MORPHO_FEATURE_<NAME>`` of an environment, by default this process's.

    Raises:
        ValueError: For a flag that is not registered, or a value that is not on, off or ``NN%``.

    Example:
        >>> feature_environment({"MORPHO_FEATURE_CHUNKED_LAYERS": "25%", "HOME": "/"})
        {'MORPHO_FEATURE_CHUNKED_LAYERS': '25%'}
    """
    source = os.environ if environment is None else environment
    found = {key: value for key, value in source.items() if key.startswith(ENVIRONMENT_PREFIX)}
    known = [ENVIRONMENT_PREFIX + name.upper() for name in (CHUNKED_LAYERS, *FLAGS)]
    for key, value in found.items():
        if key not in known:
            raise ValueError(f"The environment variable `{key}` names no flag: {suggest(key, known)}")
        _parse_setting(key, value)
    return found


def _parse_setting(key: str, value: str) -> dict[str, bool | float]:
    words: dict[str, dict[str, bool | float]] = {
        "on": {"enabled": True, "percentage": 100.0},
        "off": {"enabled": False},
    }
    setting = value.strip().lower()
    if setting in words:
        return words[setting]
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", setting)
    if number is None or float(number[1]) > 100:
        raise ValueError(
            f"The environment variable `{key}` must be on, off or a percentage such as 25% (0 to 100), got {value!r}."
        )
    return {"enabled": True, "percentage": float(number[1])}


def with_environment(name: str, flag: FlagConfig, environment: Mapping[str, str]) -> tuple[FlagConfig, str]:
    """A flag as the environment changes it, and what to add to its reasons.

    Args:
        name: Name of the flag.
        flag: Its configuration.
        environment: What :func:`feature_environment` gave.

    Example:
        >>> flag, note = with_environment("fused_kernels", FlagConfig(), {"MORPHO_FEATURE_FUSED_KERNELS": "10%"})
        >>> flag.enabled, flag.percentage, note
        (True, 10.0, ' (MORPHO_FEATURE_FUSED_KERNELS=10%)')
    """
    key = ENVIRONMENT_PREFIX + name.upper()
    if key not in environment:
        return flag, ""
    changes = _parse_setting(key, environment[key])
    return replace(flag, **changes), f" ({key}={environment[key]})"  # type: ignore[arg-type]


def flag_enabled(
    name: str,
    model_id: str,
    layer: str,
    config: RolloutConfig,
    environment: Mapping[str, str] | None = None,
) -> tuple[bool, str]:
    """Whether a layer has a feature, and why, as configured and as the environment says.

    Args:
        name: Flag: ``"chunked_layers"``, ``"fused_kernels"`` or a registered one.
        model_id: Id of the model.
        layer: Name of the layer.
        config: The rollout.
        environment: Environment variables; None: this process's.

    Example:
        >>> flag_enabled("fused_kernels", "model", "net.0", RolloutConfig(), {})
        (True, 'cohort bucket 55.42 is below 100 %')
    """
    flag, note = with_environment(name, flag_of(config, name), feature_environment(environment))
    on, why = decide_layer(model_id, layer, flag)
    return on, why + note
