"""Neural networks that grow while they train: a callback for PyTorch Lightning."""

from lightning_morpho.blueprints import Blueprint, Site, blueprint_type, register_blueprint, register_module_blueprint
from lightning_morpho.callback import MorphoCallback
from lightning_morpho.checkpoint import LoadsGrown, load_grown_
from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import (
    BlueprintConfig,
    BudgetConfig,
    CreditConfig,
    FlagConfig,
    GovernorConfig,
    GraftingConfig,
    GuardConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    RampConfig,
    RolloutConfig,
    StarvationConfig,
    TelemetryConfig,
    WarmupConfig,
)
from lightning_morpho.confirmation import confirm_pairs_
from lightning_morpho.eligibility import EligibilityReport
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.export import ExportReport, export, merge_, save_export
from lightning_morpho.governor import Governor
from lightning_morpho.layers import ChunkedKasminaLayer, HybridKasminaLayer
from lightning_morpho.lifecycle import LifecycleError, Stage
from lightning_morpho.optim import OptimizerLink
from lightning_morpho.pairs import PairProbe, PairReport, find_pairs, register_channelwise
from lightning_morpho.rollout import LiveRollout, compare_implementations, register_flag
from lightning_morpho.state import LogicalSeed, StateTensor
from lightning_morpho.surgery import hybrid_layers, morph_, unmorph_
from lightning_morpho.tamiyo import (
    AllAtStart,
    AutoSize,
    Bandit,
    Never,
    Observation,
    Periodic,
    Placed,
    Plateau,
    Probation,
    RandomPlace,
    Scripted,
    Tamiyo,
    Trial,
    Uniform,
)
from lightning_morpho.telemetry import ChunkStatistics

__version__ = "0.1.0"

__all__ = [
    "AllAtStart",
    "AutoSize",
    "Bandit",
    "Blueprint",
    "BlueprintConfig",
    "BudgetConfig",
    "ChunkManager",
    "ChunkStatistics",
    "ChunkedKasminaLayer",
    "CreditConfig",
    "EligibilityReport",
    "ExportReport",
    "FlagConfig",
    "Governor",
    "GovernorConfig",
    "GraftingConfig",
    "GrowthEngine",
    "GuardConfig",
    "HybridKasminaLayer",
    "LayersConfig",
    "LifecycleConfig",
    "LifecycleError",
    "LiveRollout",
    "LoadsGrown",
    "LogicalSeed",
    "MorphoCallback",
    "MorphoConfig",
    "Never",
    "Observation",
    "OptimizerLink",
    "PairProbe",
    "PairReport",
    "Periodic",
    "Placed",
    "Plateau",
    "Probation",
    "RampConfig",
    "RandomPlace",
    "RolloutConfig",
    "Scripted",
    "Site",
    "Stage",
    "StarvationConfig",
    "StateTensor",
    "Tamiyo",
    "TelemetryConfig",
    "Trial",
    "Uniform",
    "WarmupConfig",
    "blueprint_type",
    "compare_implementations",
    "confirm_pairs_",
    "export",
    "find_pairs",
    "hybrid_layers",
    "load_grown_",
    "merge_",
    "morph_",
    "register_blueprint",
    "register_channelwise",
    "register_flag",
    "register_module_blueprint",
    "save_export",
    "unmorph_",
]
