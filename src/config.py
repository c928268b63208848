"""The schema of a study, and the way from composed YAML to plain, checked values.

Each room owns the frozen dataclass of its own options; `Study` only puts them together. Hydra composes `conf/` freely
and this module then holds the result against the schema, so that a misspelt key in a file is found as well as one on
the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.cam.options import EXACT, check_cam
from src.data.options import DataOptions
from src.launch.hydra_launcher import literal
from src.launch.options import LaunchOptions
from src.networks.table import Network
from src.record import write_atomically
from src.scaling.currency import BudgetOptions
from src.scaling.rules import Rule
from src.tracking.options import TrackingOptions
from src.training.options import HardwareOptions, Recipe
from src.verdict.claims import Claim

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Study:
    """One arm of a study, fully resolved: everything that decides what is trained and where it is written."""

    study: str
    outputs: str
    seed: int
    budget: BudgetOptions
    cam_pictures: int
    published: dict[str, float]
    claims: tuple[Claim, ...]
    dry_run: bool
    scaling: Rule
    network: Network
    data: DataOptions
    recipe: Recipe
    hardware: HardwareOptions
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    launcher: LaunchOptions = field(default_factory=LaunchOptions)
    cam_scores: int = 256
    cam_method: str = EXACT

    def __post_init__(self) -> None:
        for key, name in (("study", self.study), ("scaling.name", self.scaling.name)):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{key}={name!r} must be a plain name, since a folder is called after it:"
                    " letters, digits, '.', '_' and '-'"
                )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed} must lie in [0, {2**31})")
        if self.cam_pictures < 0:
            raise ValueError(f"cam_pictures={self.cam_pictures} must not be negative; 0 writes no activation maps")
        check_cam(self.cam_method, self.cam_scores)
        pairs = [(claim.subject, rival) for claim in self.claims for rival in claim.rivals]
        twice = sorted({" against ".join(pair) for pair in pairs if pairs.count(pair) > 1})
        if twice or not pairs:
            problem = f"compares {twice[0]} twice" if twice else "is empty"
            raise ValueError(
                f"claims={list(map(str, self.claims))} {problem}; name each comparison once, and one at least"
            )

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return Path(self.outputs) / self.study


def parse(config: DictConfig) -> Study:
    """Check a composed config against the schema and turn it into plain values.

    Raises:
        ValueError: an unknown key, a wrong type, a missing or an impossible value; one sentence naming key, value and
            fix.
        omegaconf.errors.OmegaConfBaseException: the same, found by OmegaConf; `src.messages` turns it into a sentence.
    """
    task = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])  # type: ignore[misc]
    if isinstance(OmegaConf.select(task, "budget"), int | float):  # budget: 2 in a file is short for its multiple
        task.budget = {"multiple": task.budget}
    _check_shape(Study, OmegaConf.to_container(task), "")
    merged = OmegaConf.merge(OmegaConf.structured(_mutable(Study)), task)
    _refuse_missing(OmegaConf.missing_keys(merged))
    study = _construct(Study, OmegaConf.to_container(merged, resolve=True))
    _refuse_missing(OmegaConf.missing_keys(task))  # the schema has a default, but the file wants a choice
    assert isinstance(study, Study)
    return study


def _refuse_missing(keys: set[str]) -> None:
    if keys:
        key = min(keys)
        raise ValueError(f"{key} has no value; give it on the command line, such as {key}=...")


def read(path: Path) -> Study:
    """The study of an arm's `config.yaml`.

    Raises:
        ValueError, omegaconf.errors.OmegaConfBaseException: it is no such file, or `parse` refuses what it says.
    """
    remedy = "start the arm with python -m src.run, which writes it anew"
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path} cannot be read ({reason.strip().splitlines()[0][:100]}); {remedy}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} holds a list where keys and values belong; {remedy}")
    return parse(config)


def write(study: Study, path: Path) -> None:
    """Write the resolved config of one arm."""
    write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(literal(to_mapping(study)))))


def to_mapping(study: Study) -> dict[str, Any]:
    """The study as nested plain values."""
    mapping = json.loads(json.dumps(dataclasses.asdict(study)))
    assert isinstance(mapping, dict)
    return mapping


def knows(key: str) -> bool:
    """Whether the schema has a dotted key, such as network.stages.2.groups, though a file may leave it out."""
    kind: Any = Study
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part)
        elif typing.get_origin(kind) is tuple and part.isdigit():
            kind = typing.get_args(kind)[0]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return False
    return kind is not None


def identity(study: Study, facts: Any) -> str:
    """SHA-256 of what decides an arm's result: the resolved config without paths, devices, logging and launching, and
    what the data turned out to be. Equal hashes mean one arm; coefficients and the base have one identity at every
    budget, since they spend none, unless the budget decides how long they train."""
    mapping = to_mapping(study)
    for key in (
        "study",
        "outputs",
        "published",
        "claims",
        "dry_run",
        "tracking",
        "launcher",
        "cam_pictures",
        "cam_scores",
        "cam_method",
    ):
        del mapping[key]
    for key in ("threads", "devices", "memory_limit", "name", "kernels", "compile", "deterministic"):
        del mapping["hardware"][key]
    data = mapping["data"]
    data["root"] = Path(data["root"]).name if data["root"] else None
    for key in ("cache", "download", "workers", "memory_limit", "classes"):
        del data[key]
    if not study.scaling.solved and study.budget.currency != "train_macs":
        mapping["budget"] = {"currency": study.budget.currency}
    for block, key in (("network", "classes"), ("network", "source"), ("scaling", "source"), ("recipe", "source")):
        del mapping[block][key]
    mapping["facts"] = dataclasses.asdict(facts)
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def recipe_hash(study: Study) -> str:
    """SHA-256 of how an arm is trained, which arms and seeds that are compared must have in common: the recipe, the
    augmentation, and what batch norm takes its statistics over."""
    common: dict[str, Any] = {
        "recipe": dataclasses.asdict(study.recipe),
        "augmentation": dataclasses.asdict(study.data.augmentation),
        "sync_norm": study.hardware.sync_norm,
    }
    del common["recipe"]["source"]
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


@functools.cache
def _mutable(frozen: type) -> Any:
    """The same dataclass without `frozen` and without checks: OmegaConf cannot merge values into a frozen schema."""
    hints = typing.get_type_hints(frozen)
    fields = []
    for f in dataclasses.fields(frozen):
        default: Any = dataclasses.field(default=f.default, default_factory=f.default_factory)
        kind = hints[f.name]
        if dataclasses.is_dataclass(kind):
            kind = _mutable(typing.cast(type, kind))
            if f.default_factory is not dataclasses.MISSING:
                default = dataclasses.field(default_factory=kind)
        elif typing.get_origin(kind) is tuple:
            (element, _) = typing.get_args(kind)
            block = dataclasses.is_dataclass(element)
            kind = types.GenericAlias(list, (_mutable(typing.cast(type, element)) if block else element,))
        fields.append((f.name, kind, default))
    fields.sort(key=lambda entry: _has_default(entry[2]))
    return dataclasses.make_dataclass(frozen.__name__, fields)


def _check_shape(kind: Any, value: Any, key: str) -> None:
    """Refuse a value where a block or a list belongs, and the reverse: OmegaConf would not say where, or take it.

    Raises:
        ValueError: names key and value.
    """
    if value is None or (isinstance(value, str) and ("${" in value or value == "???")):
        return
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind)]
        if not isinstance(value, dict):
            raise ValueError(f"{key}={value!r} should be a block of keys: {', '.join(names)}")
        types = typing.get_type_hints(kind)
        for name in names:
            _check_shape(types[name], value.get(name), f"{key}.{name}" if key else name)
    elif typing.get_origin(kind) in (list, tuple):
        if not isinstance(value, list):
            raise ValueError(f"{key}={value!r} should be a list")
        element = typing.get_args(kind)[0]
        for number, entry in enumerate(value):
            place = f"{key}[{number}]"
            _check_shape(element, entry, place)
            if dataclasses.is_dataclass(element):
                try:
                    OmegaConf.merge(OmegaConf.structured(_mutable(typing.cast(type, element))), entry)
                except OmegaConfBaseException as error:
                    error.full_key = f"{place}.{error.full_key}"  # OmegaConf starts an entry's keys at the entry
                    raise
    elif typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key}={value!r} should be a block such as {{name: value}}")
    elif isinstance(value, list | dict):
        raise ValueError(f"{key}={value!r} should be a single value; sweep over several with -m {key}=a,b")


def _has_default(f: Any) -> bool:
    return f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING


def _construct(kind: Any, value: Any) -> Any:
    """Build frozen dataclasses from nested plain values; their own checks run here."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _construct(hints[name], entry) for name, entry in value.items()})
    if typing.get_origin(kind) is tuple:
        (element, _) = typing.get_args(kind)
        return tuple(_construct(element, entry) for entry in value)
    return value
