"""Makes the config groups under ``morpho/`` known to every Hydra application in this environment.

Only that group is offered, after the application's own files, and nothing of the package is imported: an
application that does not use it sees no other group and starts no slower.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

GROUP = "morpho"


class MorphoSearchPath(SearchPathPlugin):
    """Appends the package's groups to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Let the application's own files come first."""
        search_path.append("lightning_morpho", f"{MorphoConfigSource.scheme()}://configs")


class MorphoConfigSource(ConfigSource):
    """The folder ``configs`` of the installed package, of which only ``morpho`` is shown."""

    @staticmethod
    def scheme() -> str:
        """Scheme of its search path entry."""
        return "lightning-morpho"

    def _find(self, config_path: str) -> Path | None:
        spec = find_spec("lightning_morpho")
        inside = config_path.split("/")[0].removesuffix(".yaml") in (GROUP, "")
        if spec is None or not spec.submodule_search_locations or not inside:
            return None
        return Path(spec.submodule_search_locations[0], self.path, config_path)

    def available(self) -> bool:
        """Whether the package is there."""
        root = self._find("")
        return root is not None and root.is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder."""
        path = self._find(config_path)
        return path is not None and path.is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file."""
        path = self._find(self._normalize_file_name(config_path))
        return path is not None and path.is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of the groups and files in a folder."""
        folder = self._find(config_path)
        names: list[str] = []
        for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []:
            inner = f"{config_path}/{path.name}" if config_path else path.name
            if inner.split("/")[0] == GROUP:
                self._list_add_result(names, inner, path.name, results_filter)
        return names

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file."""
        path = self._find(self._normalize_file_name(config_path))
        if path is None or not path.is_file():
            raise ConfigLoadError(f"Config not found : {config_path}")
        text = path.read_text(encoding="utf-8")
        return ConfigResult(
            config=OmegaConf.create(text),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text),
        )
