"""Set two result files side by side: ``python -m benchmarks.compare OLD.json NEW.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIGURES = {"us", "spread", "ratio", "achieved", "roofline_us", "kept_mib"}


def _rows(path: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = json.loads(Path(path).read_text())["rows"]
    return {tuple((k, v) for k, v in sorted(row.items()) if k not in FIGURES): row for row in rows}


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: python -m benchmarks.compare OLD.json NEW.json, got {len(sys.argv) - 1} arguments")
    old, new = _rows(sys.argv[1]), _rows(sys.argv[2])
    for key in [k for k in old if k in new]:
        before, after = old[key], new[key]
        label = " ".join(f"{value}" for _, value in key)
        print(f"{label:<90} {before['us']:10.2f} -> {after['us']:10.2f} us  {after['us'] / before['us']:6.2f} x")
    for title, keys in (
        ("only in the first", old.keys() - new.keys()),
        ("only in the second", new.keys() - old.keys()),
    ):
        if keys:
            print(f"{title}: {len(keys)} rows")


if __name__ == "__main__":
    main()
