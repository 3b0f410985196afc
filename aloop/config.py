"""The settings of aloop.

A setting takes its value from the first of these that has one: a value set in code
(``config.log_backend = "sqlite"``), its environment variable, the YAML file named by
``ALOOP_CONFIG`` (``~/.alooprc`` without it), its default.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aloop.errors import ConfigurationError

if TYPE_CHECKING:
    from everett.manager import ConfigManager

__all__ = ["NOT_SET", "Configuration", "Setting", "config"]

NOT_SET: Final = object()
"""Stands for "no value" and "no default", since None can be either."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the type its text is turned into, its environment variable, its default."""

    type_: Callable[[str], Any]
    env_var: str
    default: Any = NOT_SET


def _boolean(text: str) -> bool:
    from everett.manager import parse_bool

    return parse_bool(text)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is negative; expected 0 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not (number == 0 or 0.001 <= number < float("inf")):
        raise ValueError(f"{number:g} is no such time; expected 0.001 s or more, or 0 for none")
    return number


class Configuration:
    """Settings as attributes; see the module's description for where a value comes from.

    Reading a setting that has neither a value nor a default raises `ConfigurationError`, and so
    does any read beyond what was set in code while the file names a setting that does not exist.
    The file is read when a setting is first needed and again when it changes.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Setting] = {}
        self._in_code: dict[str, Any] = {}
        self._manager: ConfigManager | None = None
        self._read_from: tuple[str, int | None] | None = None

    def add_config(
        self,
        key: str,
        type_: Callable[[str], Any],
        default: Any = NOT_SET,
        env_var: str | None = None,
    ) -> None:
        """Add a setting called `key`.

        `type_` turns text into a value and raises ValueError for text it cannot read. `env_var`
        is ``ALOOP_`` and the key in capitals unless it is given.
        """
        self._settings[key] = Setting(type_, (env_var or f"ALOOP_{key}").upper(), default)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        setting = self._known(key)
        if key in self._in_code:
            return self._in_code[key]
        text = self._text(setting.env_var)
        if text is not None:
            return self._parse(key, setting, text, f"{setting.env_var} or {self.file}")
        if setting.default is NOT_SET:
            raise ConfigurationError(
                f"setting {key!r} has no value and no default; set config.{key}, the environment "
                f"variable {setting.env_var}, or a line '{key}: …' in {self.file}"
            )
        return setting.default

    def __setattr__(self, key: str, value: Any) -> None:
        if key.startswith("_"):
            object.__setattr__(self, key, value)
            return
        setting = self._known(key)
        self._in_code[key] = (
            None if value is None else self._parse(key, setting, str(value), "code")
        )

    def __delattr__(self, key: str) -> None:
        self._known(key)
        self._in_code.pop(key, None)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._settings]

    @property
    def file(self) -> Path:
        """The YAML file that is read, whether or not it exists."""
        return Path(os.environ.get("ALOOP_CONFIG") or "~/.alooprc").expanduser()

    def _known(self, key: str) -> Setting:
        try:
            return self._settings[key]
        except KeyError:
            raise AttributeError(
                f"no setting is called {key!r}; expected one of {', '.join(sorted(self._settings))}"
            ) from None

    def _text(self, env_var: str) -> str | None:
        """Look a setting up in the environment and the file, in this order."""
        text: object = self._sources()(env_var, raise_error=False)
        return text if isinstance(text, str) else None

    def _sources(self) -> "ConfigManager":
        stamp = (str(self.file), self.file.stat().st_mtime_ns if self.file.exists() else None)
        if self._manager is None or self._read_from != stamp:
            # The settings library is imported here, at the first read of a setting that was not
            # set in code: it would make up a tenth of the time that `import aloop` takes.
            from everett.manager import ConfigDictEnv, ConfigManager, ConfigOSEnv

            from_file = {self._settings[k].env_var: v for k, v in self._read_file().items()}
            self._manager = ConfigManager([ConfigOSEnv(), ConfigDictEnv(from_file)])
            self._read_from = stamp
        return self._manager

    def _read_file(self) -> dict[str, str]:
        if not self.file.exists():
            if os.environ.get("ALOOP_CONFIG"):
                raise ConfigurationError(
                    f"ALOOP_CONFIG names {self.file}, which does not exist; "
                    "create it or unset the variable"
                )
            return {}
        import yaml

        try:
            content: Any = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(
                f"{self.file} cannot be read as YAML: {error}; expected lines like "
                "'log_backend: sqlite'"
            ) from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ConfigurationError(
                f"{self.file} holds a {type(content).__name__}; expected settings, one a line, "
                "like 'log_backend: sqlite'"
            )
        # What YAML holds is not known before each key has been looked at, below.
        found: dict[Any, Any] = content  # pyright: ignore[reportUnknownVariableType]
        for key in found:
            if key not in self._settings:
                raise ConfigurationError(
                    f"{self.file} has an unknown setting {key!r}; expected one of "
                    f"{', '.join(sorted(self._settings))}"
                )
        return {key: str(value) for key, value in found.items() if value is not None}

    def _parse(self, key: str, setting: Setting, text: str, where: str) -> Any:
        try:
            return setting.type_(text)
        except ValueError as error:
            raise ConfigurationError(
                f"setting {key!r} is {text!r} in {where}: {error}; "
                "correct it"
                + (
                    ""
                    if setting.default is NOT_SET
                    else f" or leave it out to get {setting.default!r}"
                )
            ) from error


config: Final = Configuration()
"""The settings of this process."""

config.add_config("log_backend", str, default="python")
config.add_config("sqlite_database", str, default="~/aloop_log.sqlite", env_var="ALOOP_SQLITEDB")
config.add_config("max_blob_size", _count, default=4096)
config.add_config("profile", _boolean, default=False)
config.add_config("stall_warning_s", _seconds, default=0.1)
config.add_config("default_seed", _count, default=1)
config.add_config("temp_dir", str, default=None, env_var="ALOOP_TEMPDIR")
