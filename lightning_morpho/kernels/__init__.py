"""What seeds compute, in few launches: dispatch, batched matrix products, fused Triton kernels."""

from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.dispatch import Backend, choose_backend, shared_memory, triton_problem
from lightning_morpho.kernels.geometry import ChunkMLPs
from lightning_morpho.kernels.ops import add_chunk_mlps

__all__ = ["ActiveSet", "Backend", "ChunkMLPs", "add_chunk_mlps", "choose_backend", "shared_memory", "triton_problem"]
