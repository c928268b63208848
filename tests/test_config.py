"""The schema of a study against the files of `conf/`, what it refuses, and what makes two arms the same."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from src import config
from src.config import Study
from src.data.splits import DataFacts
from src.launch.hydra_launcher import register
from src.scaling.currency import BudgetOptions

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))
GROUPS = {"data", "hardware", "launcher", "network", "recipe", "scaling", "tracking"}
EXPLAINED = ("data", "hardware", "launcher", "recipe", "tracking")  # groups in which every key carries a comment
FACTS = DataFacts("clutter", ("a", "b"), 64, has_boxes=True)


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    """Hydra on the real `conf/`."""
    register(lambda configs: [0] * len(configs), ROOT / "sweeps")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@pytest.fixture(scope="module")
def composed(hydra: None) -> DictConfig:
    """What `python -m src.run` composes without arguments."""
    return compose("config")


@pytest.fixture
def task(composed: DictConfig) -> DictConfig:
    """A copy that a test may change."""
    return copy.deepcopy(composed)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The least that `data=folder` needs."""
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
    return tmp_path / "pets"


def needed(name: str, tree: Path) -> list[str]:
    """What has no value in a file and must be given."""
    given = {"data/folder": [f"data.root={tree}"], "scaling/custom": ["scaling.exponents=[0.2,0.5,0.3]"]}
    return given.get(name, [])


def changed(task: DictConfig, **values: Any) -> Study:
    """The study of a config in which dotted keys (written with __) have other values."""
    for key, value in values.items():
        OmegaConf.update(task, key.replace("__", "."), value, force_add=True)
    return config.parse(task)


def test_the_groups_are_those_of_the_schema() -> None:
    assert {name.partition("/")[0] for name in FILES} == GROUPS
    assert {f.name for f in dataclasses.fields(Study) if f.name in GROUPS} == GROUPS


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes_into_a_checked_study_that_survives_its_file(
    name: str, hydra: None, tree: Path, tmp_path: Path
) -> None:
    group, _, choice = name.partition("/")
    study = config.parse(compose("config", overrides=[f"{group}={choice}", *needed(name, tree)]))
    written = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    parsed = config.to_mapping(study)[group]
    filled = {key: parsed[key] for key, value in written.items() if value == "???" or (key, value) == ("name", "")}
    assert all(filled.values())
    written.pop("defaults", None)
    assert_holds(parsed, {**written, **filled})
    if written.get("name"):
        assert written["name"] == choice
    config.write(study, tmp_path / "config.yaml")
    assert config.read(tmp_path / "config.yaml") == study
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == config.to_mapping(study)


def assert_holds(parsed: Any, written: Any) -> None:
    """Every value of a file arrived unchanged."""
    if isinstance(written, dict):
        for key, value in written.items():
            assert_holds(parsed[key], value)
    elif isinstance(written, list):
        for mine, other in zip(parsed, written, strict=True):
            assert_holds(mine, other)
    else:
        assert parsed == written and isinstance(parsed, bool) == isinstance(written, bool)


def test_the_default_study_is_named_after_data_and_network(composed: DictConfig) -> None:
    study = config.parse(composed)
    assert study.study == "clutter-efficientnet_nano" and study.folder == Path("outputs/clutter-efficientnet_nano")
    assert (study.budget, study.seed, study.dry_run) == (BudgetOptions(2.0, "macs", None), 0, False)


def test_plain_frozen_values_come_out(composed: DictConfig) -> None:
    def walk(value: Any) -> None:
        assert not OmegaConf.is_config(value)
        if dataclasses.is_dataclass(value):
            assert type(value).__dataclass_params__.frozen and type(value).__module__.startswith("src.")
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name))
        elif isinstance(value, tuple):
            for entry in value:
                walk(entry)

    study = config.parse(composed)
    walk(study)
    assert len({study.network, dataclasses.replace(study.network)}) == 1  # hashable: solutions are cached by network


def test_parsing_changes_nothing_and_leaves_hydra_alone(task: DictConfig) -> None:
    before = OmegaConf.to_container(task)
    study = config.parse(task)
    assert OmegaConf.to_container(task) == before
    OmegaConf.update(task, "hydra", {"job": {"name": "x"}, "unknown": "${nowhere}"}, force_add=True)
    assert config.parse(task) == study


def comments(text: str) -> dict[str, bool]:
    """Keys of a YAML file that hold a value, and whether their line has a comment.

    A key of one family with the key above (train, val, test; min, max) shares its comment.
    """
    found: dict[str, bool] = {}
    above = ("", False)
    for line in text.splitlines():
        key = re.match(r" *([a-z_]+):(.*)", line)
        if key and re.sub(r"#.*", "", key[2]).strip():
            family = re.sub(r"train|val|test|min|max", "*", key[1])
            found[key[1]] = " # " in key[2] or (above[0] == family and above[1])
            above = (family, found[key[1]])
    return found


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(EXPLAINED)])
def test_every_key_a_user_may_change_is_explained_on_its_line(name: str) -> None:
    found = comments((CONF / f"{name}.yaml").read_text())
    assert len(found) >= 4
    assert {key for key, explained in found.items() if not explained} <= {"name", "source"}


@pytest.mark.parametrize("name", [*FILES, "config"])
def test_every_file_says_first_what_it_is(name: str) -> None:
    assert re.match(r"# \S.{20,}", (CONF / f"{name}.yaml").read_text())


def test_the_check_of_comments_can_fail() -> None:
    text = "name: x\na: 1  # yes\nb: 2\ntrain: 1 # n\nval: 2\nblock:\n  deep: 3\n  fine: 3 # yes\ncolour: '#fff'\n"
    missing = {key for key, explained in comments(text).items() if not explained}
    assert missing == {"name", "b", "deep", "colour"}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}", value
        yield from leaves(value, f"{prefix}{key}.")


def test_a_misspelt_key_is_refused_wherever_it_stands(composed: DictConfig) -> None:
    nodes = [("", composed), *((f"{key}.", node) for key, node in leaves(OmegaConf.to_container(composed)))]
    blocks = [prefix for prefix, node in nodes if isinstance(node, DictConfig | dict)]
    assert len(blocks) >= 12
    for prefix in blocks:
        if prefix == "published.":  # its keys are names of arms
            continue
        task = copy.deepcopy(composed)
        OmegaConf.update(task, f"{prefix}epoch", 3, force_add=True)
        with pytest.raises(ConfigKeyError, match=r"Key 'epoch' not in") as refused:
            config.parse(task)
        assert refused.value.full_key == f"{prefix}epoch"


def test_a_misspelt_key_of_a_stage_is_refused(task: DictConfig) -> None:
    OmegaConf.update(task, "network.stages[1]", {"chanels": 3}, force_add=True)
    with pytest.raises(ConfigKeyError, match=r"chanels"):
        config.parse(task)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["recipe.epoch=3"], ConfigCompositionException),
        (["+recipe.epoch=3"], ConfigKeyError),
        (["++launcher.job=2"], ConfigKeyError),
        (["+extra=1"], ConfigKeyError),
        (["recipe=quik"], MissingConfigException),
        (["+network.stem.chanels=3"], ConfigKeyError),
        (["~recipe.epochs"], ValueError),
        (["recipe.epochs=2.5"], ValidationError),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_refused(hydra: None, overrides: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        config.parse(compose("config", overrides=overrides))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe__epochs", "many"), ("recipe__epochs", 2.5), ("recipe__epochs", True), ("recipe__epochs", None),
        ("recipe__epochs", [1, 2]), ("recipe__learning_rate", "fast"), ("recipe__learning_rate", {"peak": 1}),
        ("recipe__name", None), ("budget", "two"), ("budget", True), ("seed", 1.5), ("seed", "0,1"),
        ("launcher__timeout_minutes", "soon"), ("data__augmentation__flip", 2.5), ("dry_run", "maybe"),
        ("scaling__exponents", None), ("hardware__threads", "all"), ("network__stages", None), ("recipe", None),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_key(task: DictConfig, key: str, value: Any) -> None:
    OmegaConf.update(task, key.replace("__", "."), value, force_add=True, merge=False)
    with pytest.raises((OmegaConfBaseException, ValueError), match=re.escape(key.replace("__", "."))):
        config.parse(task)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe", "quick", r"^recipe='quick' should be a block of keys: name, epochs, batch_size, .*source$"),
        ("recipe", [1], r"^recipe=\[1\] should be a block of keys: name, "),
        ("network.stem", 3, r"^network\.stem=3 should be a block of keys: channels, stride, kernel, pool$"),
        ("data.augmentation", [1], r"^data\.augmentation=\[1\] should be a block of keys: crop_padding, "),
        ("data.clutter", "x", r"^data\.clutter='x' should be a block of keys: train, "),
        ("network.stages", {"a": 1}, r"^network\.stages=\{'a': 1\} should be a list$"),
        ("network.stages", "x", r"^network\.stages='x' should be a list$"),
        ("network.stages", [3], r"^network\.stages\[0\]=3 should be a block of keys: block, kernel, "),
        ("tracking.tags", {"a": 1}, r"^tracking\.tags=\{'a': 1\} should be a list$"),
        ("tracking.tags", "one", r"^tracking\.tags='one' should be a list$"),
    ],
)
def test_a_value_of_the_wrong_shape_is_refused_by_key(task: DictConfig, key: str, value: Any, message: str) -> None:
    OmegaConf.update(task, key, value, force_add=True, merge=False)
    with pytest.raises(ValueError, match=message):
        config.parse(task)


def test_values_may_point_to_others(task: DictConfig) -> None:
    OmegaConf.update(task, "tracking.tags", ["a", "${seed}"], force_add=True)
    task.network.norm.eps = "${recipe.weight_decay}"
    task.data.clutter.val = "${data.clutter.test}"
    study = config.parse(task)
    assert (
        study.network.norm.eps == study.recipe.weight_decay
        and study.tracking.tags == ["a", "0"]
        and study.data.clutter.val == 2000
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("study", "a/b", r"study='a/b' must be a plain name"),
        ("study", "", r"study='' must be a plain name"),
        ("study", "../x", r"study='\.\./x' must be a plain name"),
        ("study", "x\n", r"study='x\\n' must be a plain name"),
        ("scaling__name", "my rule", r"scaling\.name='my rule' must be a plain name"),
        ("seed", -1, r"seed=-1 must lie in \[0, 2147483648\)"),
        ("seed", 2**31, r"seed=2147483648 must lie in"),
        ("cam_pictures", -1, r"cam_pictures=-1 must not be negative"),
        ("cam_scores", -1, r"cam_scores=-1 must not be negative"),
        ("cam_method", "gradcan", r"cam_method='gradcan' is unknown, did you mean gradcam"),
        ("recipe__warmup", 0.2, r"recipe\.warmup=0\.2 must lie in \[0, 0\.1\]"),
        ("hardware__devices", 0, r"hardware\.devices=0"),
        ("launcher__jobs", 0, r"launcher\.jobs=0"),
        ("tracking__mode", "offlin", r"tracking\.mode='offlin'.*mean offline"),
        ("data__clutter__train", 0, r"data\.clutter\.train=0"),
        ("data__augmentation__crop_padding", 2.0, r"data\.augmentation\.crop_padding=2\.0"),
        ("scaling__exponents", [0.9, 0.9, 0.0], r"scaling\.exponents=\[0\.9, 0\.9, 0\.0\] sum to"),
        ("network__activation", "gelu", r"network\.activation='gelu'"),
    ],
)
def test_an_impossible_value_is_refused_by_the_room_it_belongs_to(
    task: DictConfig, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        changed(task, **{key: value})


def test_data_without_its_root_is_named(hydra: None) -> None:
    with pytest.raises(ValueError, match=r"data\.root is missing"):
        config.parse(compose("config", overrides=["data=folder"]))


@pytest.mark.parametrize("key", ["budget.multiple", "recipe.epochs", "scaling.exponents", "network.stem.stride"])
def test_a_value_that_was_left_open_is_named(task: DictConfig, key: str) -> None:
    OmegaConf.update(task, key, "???")
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} has no value; give it .*{re.escape(key)}=\.\.\.$"):
        config.parse(task)


SAME: dict[str, Any] = {
    "study": "other", "outputs": "/elsewhere", "dry_run": True, "cam_pictures": 0, "cam_scores": 0,
    "tracking__mode": "disabled", "tracking__project": "other", "tracking__tags": ["x"], "tracking__notes": "hello",
    "launcher__jobs": 2, "launcher__rerun": True, "launcher__timeout_minutes": 5.0, "launcher__progress": "none",
    "hardware__threads": 1, "hardware__name": "other",
    "data__cache": "/elsewhere", "data__workers": 2, "data__memory_limit": "1GiB", "data__download": False,
}  # fmt: skip
OTHER: dict[str, Any] = {
    "seed": 1, "budget": 3.0, "scaling__name": "mine", "hardware__precision": "32-true", "hardware__accelerator": "cpu",
    "scaling__exponents": [0.5, 0.5, 0.0],
    "recipe__epochs": 9, "recipe__batch_size": 65, "recipe__optimizer": "adamw", "recipe__learning_rate": 4.1e-3,
    "recipe__weight_decay": 0.06, "recipe__warmup": 0.09, "recipe__final_learning_rate": 0.011,
    "recipe__label_smoothing": 0.06, "recipe__dropout": 0.2, "recipe__drop_path": 0.1, "recipe__ema_horizon": 0.06,
    "recipe__momentum": 0.91, "recipe__schedule": "cosine", "recipe__decay_every": 0.1,
    "recipe__learning_rate_batch": 128, "recipe__epsilon": 1e-7,
    "data__augmentation__policy": "randaugment", "data__augmentation__ops": 3, "data__augmentation__magnitude": 10,
    "data__augmentation__resized_crop_area": [0.1, 1.0],
    "data__split_seed": 1, "data__train_limit": 100, "data__val_limit": 100, "data__test_limit": 100,
    "data__clutter__train": 5999, "data__clutter__fragments": 3, "data__augmentation__flip": True,
    "data__augmentation__erasing": 0.1, "data__augmentation__crop_padding": 0.1,
    "network__resolution": 40, "network__head_channels": 196, "network__activation": "relu",
    "network__norm__momentum": 0.2, "network__norm__eps": 2.0e-3, "network__stem__channels": 20,
    "network__channel_divisor": 8,
}  # fmt: skip


@pytest.mark.parametrize("key", SAME)
def test_what_does_not_decide_a_result_leaves_its_identity(composed: DictConfig, task: DictConfig, key: str) -> None:
    study, other = config.parse(composed), changed(task, **{key: SAME[key]})
    assert other != study and config.identity(other, FACTS) == config.identity(study, FACTS)


NEEDS = {"recipe__epsilon": {"recipe__optimizer": "rmsprop_tf"}}  # keys that mean nothing with other values as shipped


@pytest.mark.parametrize("key", OTHER)
def test_what_decides_a_result_changes_its_identity(task: DictConfig, key: str) -> None:
    needed = NEEDS.get(key, {})
    study, other = changed(task, **needed), changed(task, **needed, **{key: OTHER[key]})
    assert config.identity(other, FACTS) != config.identity(study, FACTS)


def test_no_field_of_the_recipe_is_forgotten() -> None:
    fields = {f.name for f in dataclasses.fields(config.Recipe)} - {"name", "source"}
    assert fields == {key.removeprefix("recipe__") for key in OTHER if key.startswith("recipe__")}


def test_every_stage_is_part_of_the_identity(composed: DictConfig, task: DictConfig) -> None:
    first = config.identity(config.parse(composed), FACTS)
    for stage in range(3):
        other = copy.deepcopy(task)
        other.network.stages[stage].repeats += 1
        assert config.identity(config.parse(other), FACTS) != first


def test_what_the_data_turned_out_to_be_is_part_of_the_identity(composed: DictConfig) -> None:
    study = config.parse(composed)
    values: tuple[dict[str, Any], ...] = ({}, {"class_names": ("a", "b", "c")}, {"native_pixels": 32}, {"name": "y"})
    assert len({config.identity(study, dataclasses.replace(FACTS, **value)) for value in values}) == 4


def test_a_folder_is_known_by_its_name_wherever_it_lies(hydra: None) -> None:
    roots = ("/a/pets", "/b/c/pets", "pets/", "/a/birds")
    studies = [config.parse(compose("config", overrides=["data=folder", f"data.root={root}"])) for root in roots]
    hashes = [config.identity(study, FACTS) for study in studies]
    assert len(set(hashes[:3])) == 1 and hashes[3] != hashes[0]


def test_the_base_is_one_arm_at_every_budget(hydra: None) -> None:
    def hashes(scaling: str) -> set[str]:
        overrides = ([f"scaling={scaling}", f"budget={budget}"] for budget in (2, 4.0))
        return {config.identity(config.parse(compose("config", overrides=o)), FACTS) for o in overrides}

    assert len(hashes("base")) == 1 and len(hashes("depth")) == 2


def test_the_identity_is_one_in_the_parent_and_in_the_arm(composed: DictConfig, tmp_path: Path) -> None:
    study = config.parse(composed)
    config.write(study, tmp_path / "config.yaml")
    assert config.identity(config.read(tmp_path / "config.yaml"), FACTS) == config.identity(study, FACTS)
    assert re.fullmatch(r"[0-9a-f]{64}", config.identity(study, FACTS))


@pytest.mark.parametrize(
    "text", ["null", "1e3", "yes", "0123", "ünï # : - {x}", "two\nlines", " padded ", "$HOME", "%"]
)
def test_text_survives_the_file(task: DictConfig, tmp_path: Path, text: str) -> None:
    study = changed(task, tracking__notes=text, outputs=text)
    config.write(study, tmp_path / "config.yaml")
    assert config.read(tmp_path / "config.yaml") == study and study.tracking.notes == text


def test_a_damaged_file_is_refused(composed: DictConfig, tmp_path: Path) -> None:
    config.write(config.parse(composed), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("  epochs: 8\n", "  epoch: 8\n"))
    with pytest.raises(ConfigKeyError, match=r"Key 'epoch' not in"):
        config.read(tmp_path / "config.yaml")


def test_a_declared_number_of_classes_leaves_the_identity(hydra: None) -> None:
    extras: tuple[list[str], ...] = ([], ["data.classes=2"])
    studies = [config.parse(compose("config", overrides=["data=folder", "data.root=/a/pets", *e])) for e in extras]
    assert len({config.identity(study, FACTS) for study in studies}) == 1


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("network.stages.2.groups", True), ("network.stem.pool", True), ("data.classes", True),
        ("budget.network", True), ("network.stages.groups", False), ("network.stages.2.gropus", False),
        ("scaling.depth.more", False), ("nonsense", False),
    ],
)  # fmt: skip
def test_the_schema_knows_keys_that_files_leave_out(key: str, known: bool) -> None:
    assert config.knows(key) is known


def test_a_budget_may_be_one_number_in_a_file(task: DictConfig) -> None:
    task.budget = 3
    assert config.parse(task).budget == BudgetOptions(3.0)


def test_coefficients_and_the_base_are_one_arm_at_every_budget_unless_it_decides_their_length(task: DictConfig) -> None:
    def hashes(name: str, currency: str) -> set[str]:
        given: dict[str, Any] = {"exponents": [0.0] * 3} if name == "base" else {"exponents": [], "depth": 2.0}
        budgets = [{"multiple": multiple, "currency": currency} for multiple in (2.0, 3.0)]
        values = [{"scaling": {"name": name, **given}, "budget": budget} for budget in budgets]
        return {config.identity(changed(copy.deepcopy(task), **value), FACTS) for value in values}

    assert len(hashes("base", "macs")) == len(hashes("free", "macs")) == 1
    assert len(hashes("base", "train_macs")) == len(hashes("free", "train_macs")) == 2
    assert hashes("base", "macs") != hashes("base", "params")
