"""Hydra glue: the `process` launcher, the `study` sweeper and the `sweep` config group, all registered in code.

Hydra takes a launcher or sweeper only if the dotted name in `_target_` begins with `hydra_plugins.`, is registered and
can be imported (Plugins._instantiate and instantiate, 1.3.8). So the classes here live under such a name in a module
made in memory, and no top-level `hydra_plugins` folder is needed.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

RunAll = Callable[[list[DictConfig]], list[int]]
Preflight = Callable[[list[DictConfig]], list[int]]

LAUNCHER = "process"
SWEEPER = "study"
SWEEP_GROUP = "sweep"
LABELLED = "scaling"  # the group whose option names the arm, in every table and folder
LARGEST_SWEEP = 10_000  # arms; composing so many takes minutes, and a slip of the keyboard asks for millions
_NAMESPACE = "hydra_plugins.scalestudy"


class JobError(Exception):
    """A job of another launcher than ours failed; the message is one sentence. The other jobs of the sweep go on."""


def register(
    run_all: RunAll,
    sweeps: Path,
    groups: Sequence[str] = (),
    shorthand: Mapping[str, str] | None = None,
    preflight: Preflight | None = None,
) -> None:
    """Make `hydra/launcher=process`, `hydra/sweeper=study` and `+sweep=NAME` known; call it before `hydra.main` runs.

    Args:
        run_all: takes the resolved config of every job of a sweep (no `hydra` node), returns their exit codes.
        groups: config groups that must have exactly one option.
        sweeps: folder of named studies; its `*.yaml` files are the options of the group `sweep`, not its subfolders.
        shorthand: blocks that may be written as one value, and the key that is meant: budget=2 is budget.multiple=2.
            It holds in named studies and in `hydra.sweeper.params`; for the command line see `spell_out`.
        preflight: takes the resolved configs of a sweep that another launcher will run, returns the numbers of those to
            run.
    """
    StudyLauncher.run_all = staticmethod(run_all)
    StudySweeper.preflight = staticmethod(preflight) if preflight else None
    StudyLauncher.groups = groups
    StudySweeper.shorthand = SweepSource.shorthand = shorthand or {}
    SweepSearchPath.folder = sweeps.resolve()
    plugins = Plugins.instance()  # imports the real `hydra_plugins`, if other plugins are installed
    for plugin in (StudyLauncher, StudySweeper, SweepSource, SweepSearchPath):
        plugins.register(plugin)
    module = types.ModuleType(_NAMESPACE)
    vars(module).update(StudyLauncher=StudyLauncher, StudySweeper=StudySweeper)
    parent = sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins"))
    setattr(parent, "scalestudy", module)  # noqa: B010 (mypy knows no such attribute)
    sys.modules[_NAMESPACE] = module
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name=LAUNCHER, node=_LauncherConf, provider="scalestudy")
    store.store(group="hydra/sweeper", name=SWEEPER, node=_SweeperConf, provider="scalestudy")


def spell_out(overrides: Sequence[str], shorthand: Mapping[str, str]) -> list[str]:
    """Overrides with every shorthand key in full: budget=2,4 becomes budget.multiple=2,4; a block {...} stays."""
    full = []
    for override in overrides:
        key, sign, value = override.partition("=")
        bare = key.lstrip("+")
        meant = bool(sign) and bare in shorthand and not value.lstrip().startswith("{")
        full.append(f"{key[: len(key) - len(bare)]}{shorthand[bare]}={value}" if meant else override)
    return full


def literal(value: Any) -> Any:
    """Plain values, nested or not, with every "${" escaped, so that OmegaConf reads the same text and no reference."""
    if isinstance(value, dict):
        return {key: literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [literal(entry) for entry in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


@dataclass
class _LauncherConf:
    _target_: str = f"{_NAMESPACE}.StudyLauncher"


@dataclass
class _SweeperConf:
    _target_: str = f"{_NAMESPACE}.StudySweeper"
    params: dict[str, str] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)


class StudyLauncher(Launcher):
    """Composes the config of every job first and hands all of them to the wiring at once."""

    __module__ = _NAMESPACE
    run_all: RunAll
    groups: Sequence[str] = ()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs.

        Raises:
            SystemExit: 1 if a job's exit code is not 0.
        """
        returns = [
            compose(self.hydra_context, self.config, list(overrides), number, self.groups)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        codes = self.run_all([job.cfg for job in returns if job.cfg is not None])
        assert len(codes) == len(returns)
        for job, code in zip(returns, codes, strict=True):
            job.status, job.return_value = JobStatus.COMPLETED, code
        if any(codes):
            # Hydra itself has no way to say that jobs failed except by raising the first one's exception.
            raise SystemExit(1)
        return returns


def compose(
    hydra_context: HydraContext, primary: DictConfig, overrides: list[str], number: int, groups: Sequence[str]
) -> JobReturn:
    """The resolved config of one job of a sweep, as `cfg` without the `hydra` node."""
    config = hydra_context.config_loader.load_sweep_config(primary, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    check_job(config.hydra, config, groups)
    present = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # ${hydra:...} is looked up there
    try:
        task = copy.deepcopy(config)  # and not a new config: the cache of ${now:...} must come along
        with read_write(task), open_dict(task):
            del task["hydra"]
        task = OmegaConf.create(literal(OmegaConf.to_container(task, resolve=True)))
        name = str(config.hydra.job.name)
    finally:
        HydraConfig.instance().cfg = present
    return JobReturn(overrides=overrides, cfg=task, hydra_cfg=config, working_dir=os.getcwd(), task_name=name)


def check_job(hydra: Any, composed: DictConfig, groups: Sequence[str]) -> None:
    """Refuse what Hydra accepts of one job and then drops or merges in silence.

    Args:
        hydra: the `hydra` node of a composed config.
        composed: that config.
        groups: config groups that must have exactly one option.

    Raises:
        ConfigCompositionException: a group holds several options or none (`group=[a,b]` is merged into one and left out
            of the choices), a key is given twice, several named studies are merged, a study's sweep is not run, or an
            option of `LABELLED` keeps its name although its numbers are changed.
    """
    for group in groups:
        if group not in hydra.runtime.choices:
            raise ConfigCompositionException(
                f"{group} must be exactly one option, as in {group}=NAME; for one arm each write -m {group}=NAME,NAME"
            )
    lines = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # a line may refer to keys of the study
    assert isinstance(lines, list)
    given = _by_key(OverridesParser.create().parse_overrides(lines), "the command line")
    for override in given.values():
        if override.key_or_group == SWEEP_GROUP and isinstance(override.value(), list):
            raise ConfigCompositionException(
                f"{override.input_line} is a list of studies, run them one after the other as +{SWEEP_GROUP}=NAME"
            )
    keys = {key for key, _ in given}
    changed = sorted(key for key in keys if key.startswith(f"{LABELLED}."))
    name = OmegaConf.select(composed, f"{LABELLED}.name")
    if changed and name and f"{LABELLED}.name" not in keys:
        raise ConfigCompositionException(
            f"{changed[0]} is changed and the arm would still be called {name}, add {LABELLED}.name=NAME, or choose"
            f" {LABELLED}=custom or {LABELLED}=coefficients, which are named after their numbers"
        )
    if hydra.mode == RunMode.RUN and (hydra.sweeper.get("params") or hydra.sweeper.get("arms")):
        raise ConfigCompositionException(
            "hydra.mode=RUN trains one arm, and the chosen study lists what to sweep over; leave hydra.mode out, or run"
            " the arm you mean without the study"
        )


class StudySweeper(Sweeper):
    """The product of all lists, where the command line beats `hydra.sweeper.params` key by key.

    `hydra.sweeper.arms` lists arms that are no product, each a line of overrides, such as
    "scaling=coefficients scaling.name=deep scaling.depth=4"; every one of them meets every combination of the rest.

    Unlike Hydra's basic sweeper it takes `+key`, `++key` and `~key` for the same key as `key`, and refuses what would
    be dropped in silence: a key given twice, a value given twice, an empty list, several named studies at once. It is
    no subclass of the basic one, because Hydra's plugin scan executes that class's module a second time.
    """

    __module__ = _NAMESPACE
    shorthand: Mapping[str, str] = types.MappingProxyType({})
    preflight: Preflight | None = None

    def __init__(self, params: DictConfig | None = None, arms: Sequence[str] | None = None) -> None:
        self.params, self.arms = dict(params or {}), list(arms or [])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs = expand_jobs(self.params, self.arms, arguments, parser, self.shorthand)
        if not isinstance(self.launcher, StudyLauncher):  # which composes and plans all jobs before it starts the first
            jobs = self._wanted(jobs)
        returns = self.launcher.launch(jobs, initial_job_idx=0) if jobs else []
        failures = 0
        for job in returns:
            try:
                _ = job.return_value  # raises what the job has raised
            except JobError as failure:
                print(f"error: {failure}", file=sys.stderr)
                failures += 1
        if failures:
            raise SystemExit(1)
        return [returns]

    def _wanted(self, jobs: list[list[str]]) -> list[list[str]]:
        """The jobs that another launcher has to run; all are composed and planned before the first one starts."""
        assert self.hydra_context is not None and self.config is not None
        composed = [
            compose(self.hydra_context, self.config, overrides, number, StudyLauncher.groups).cfg
            for number, overrides in enumerate(jobs)
        ]
        if self.preflight is None:
            return jobs
        return [jobs[number] for number in self.preflight([config for config in composed if config is not None])]


def expand_jobs(
    params: Mapping[Any, Any],
    arms: Sequence[str],
    arguments: Sequence[str],
    parser: OverridesParser,
    shorthand: Mapping[str, str],
) -> list[list[str]]:
    """The overrides of every job of a sweep.

    Args:
        params: `hydra.sweeper.params`, one string of values a key.
        arms: `hydra.sweeper.arms`.
        arguments: overrides of the command line; they beat `params` key by key.

    Raises:
        ConfigCompositionException: something would be dropped in silence.
    """
    for key, value in params.items():
        if OmegaConf.is_config(value):  # OmegaConf lets it pass as a string
            raise ConfigCompositionException(
                f"hydra.sweeper.params.{key!s}={value} is one value, write a string such as {key!s}: a,b to sweep"
            )
    lines = spell_out([f"{key!s}={value}" for key, value in params.items()], shorthand)
    swept = _by_key(parser.parse_overrides(lines), "hydra.sweeper.params")
    given = _by_key(parser.parse_overrides(list(arguments)), "the command line")
    listed = [_by_key(parser.parse_overrides(spell_out(arm.split(), shorthand)), arm) for arm in arms]
    for clash in {key for arm in listed for key in arm} & {*swept, *given}:
        raise ConfigCompositionException(
            f"{clash[0]} is set by each arm that this study lists; leave it out, or run the arm you mean without the"
            " study"
        )
    variants = [_variants(override) for override in {**swept, **given}.values()]
    arms_asked = math.prod(map(len, variants)) * max(1, len(listed))
    if arms_asked > LARGEST_SWEEP:
        raise ConfigCompositionException(
            f"this sweep has {arms_asked:,} arms and at most {LARGEST_SWEEP:,} are composed at once, sweep over fewer"
            " values"
        )
    products = itertools.product(*variants)
    fixed = [[str(override.input_line) for override in arm.values()] for arm in listed] or [[]]
    return [[*arm, *job] for job, arm in itertools.product(map(list, products), fixed)]


def _by_key(overrides: Sequence[Override], place: str) -> dict[tuple[str, str | None], Override]:
    found: dict[tuple[str, str | None], Override] = {}
    for override in overrides:
        key = (override.key_or_group, override.package)
        if key in found:
            both = f"{found[key].input_line} and {override.input_line}"
            raise ConfigCompositionException(f"{place} gives {key[0]} twice, {both}: keep one")
        found[key] = override
    return found


def _variants(override: Override) -> list[str]:
    """The overrides that one line of a sweep stands for; a line that is no sweep stands for itself."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    if override.key_or_group == SWEEP_GROUP:
        raise ConfigCompositionException(f"{line} names several studies, run them one after the other")
    if not override.is_discrete_sweep():
        raise ConfigCompositionException(
            f"{line} is no finite list of values, use a list {override.key_or_group}=a,b or a range(start,stop,step)"
        )
    if override.is_range_sweep():
        _check_range(line, override)
    values = list(override.sweep_string_iterator())
    if not values:
        raise ConfigCompositionException(f"{line} has no value, so that the sweep would have no arm")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ConfigCompositionException(f"{line} names {', '.join(twice)} twice, keep one of them")
    return [f"{override.get_key_element()}={value}" for value in values]


def _check_range(line: str, override: Override) -> None:
    """Refuse a range that Hydra would count for ever."""
    ends = override.value()
    assert isinstance(ends, RangeSweep) and ends.start is not None and ends.stop is not None
    steps = (ends.stop - ends.start) / ends.step if ends.step else math.inf
    if not steps <= LARGEST_SWEEP:
        raise ConfigCompositionException(
            f"{line} has no end, or one beyond {LARGEST_SWEEP:,} values: use a finite range(start,stop,step) whose step"
            " is not 0"
        )


class SweepSource(ConfigSource):
    """Maps the config group `sweep` to the files of one folder.

    A named study is placed at the root of the config, and runs as a sweep without `-m` if it says what to sweep over.
    """

    shorthand: Mapping[str, str] = types.MappingProxyType({})

    @staticmethod
    def scheme() -> str:
        return "sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._file(config_path)
        try:
            config = OmegaConf.load(path)
        except (OSError, UnicodeDecodeError) as error:  # OmegaConf says of neither which file it is
            reason = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no block of keys"
            raise ConfigCompositionException(
                f"{path.parent.name}/{path.name} is {reason}, write keys and values such as study: mine"
            ) from error
        if not isinstance(config, DictConfig) or not config:
            raise ConfigCompositionException(
                f"{path.parent.name}/{path.name} holds no keys, write keys and values such as study: mine"
            )
        header = self._get_header_dict(path.read_text(encoding="utf-8"))
        header["package"] = header["package"] or "_global_"
        sweeps = ("hydra.sweeper.params", "hydra.sweeper.arms")
        if any(OmegaConf.select(config, key) for key in sweeps):
            if OmegaConf.select(config, "hydra.mode") is None:
                OmegaConf.update(config, "hydra.mode", "MULTIRUN")
        for block, key in self.shorthand.items():
            value = OmegaConf.select(config, block)
            if value is not None and not OmegaConf.is_config(value):
                OmegaConf.update(config, block, None)  # OmegaConf puts no block in place of a value
                OmegaConf.update(config, key, value)
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header=header)

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path.removeprefix(f"{SWEEP_GROUP}/"))

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        # Also without the folder, or Hydra would take `+sweep=x` for a new key and go on.
        return config_path.rstrip("/") in ("", SWEEP_GROUP)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        return group == SWEEP_GROUP and "/" not in name and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [SWEEP_GROUP]
        if config_path != SWEEP_GROUP or results_filter == ObjectType.GROUP:
            return []
        return sorted(path.stem for path in Path(self.path).glob("*.yaml") if path.is_file())


class SweepSearchPath(SearchPathPlugin):
    """Puts the folder of named studies behind `conf/` on Hydra's search path."""

    folder: Path

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider=SWEEP_GROUP, path=f"{SweepSource.scheme()}://{self.folder}")
