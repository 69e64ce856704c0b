"""What the processes of a run tell each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def gather_objects(item: Any) -> list[Any]:
    """The same item of all ranks; in one process the item alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return [item]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, item)
    return parts
