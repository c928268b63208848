"""The 55 defects of two published studies, each as a deliberate fault in config, code, data, records or documents.

Row numbers, guards and stories are those of the project's list of defects: H1-H15 of a blog's notebook, C1-C40 of a
poster's. A mutant returns where and in which words it was caught.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations.world import (
    PLANNED,
    RECORDED,
    ROOT,
    TRAINED,
    Caught,
    World,
    change_records,
    drop_seeds,
    first_of,
    write_tree,
)
from torch import nn
from torch.nn.functional import interpolate

from src import audit as audit_command
from src import planning
from src.cam.panel import load_cam
from src.data import transforms
from src.data.module import ImageDataModule
from src.data.sampling import NO_AUGMENTATION, RawBatch
from src.networks import layers
from src.networks.build import ConvNet, Outputs, build
from src.networks.table import Network
from src.record import RunRecord
from src.report.write import write_report
from src.scaling import audit
from src.training import fit, optimizers
from src.training.module import Classifier
from src.training.options import Recipe

VERIFIED = "by --verify"


@dataclass(frozen=True)
class Mutant:
    """One defect, re-injected. where: the place in which it must be caught; guard: the one that must be named."""

    row: str
    guard: str
    where: str
    kind: str
    fault: str
    inject: Callable[[World], Caught]


MUTANTS: list[Mutant] = []
Inject = Callable[[World], Caught]


def mutant(row: str, guard: str, where: str, kind: str, fault: str) -> Callable[[Inject], Inject]:
    """Enter a function into the list of mutants."""

    def enter(inject: Inject) -> Inject:
        MUTANTS.append(Mutant(row, guard, where, kind, fault, inject))
        return inject

    return enter


def base_table() -> Network:
    """The unscaled table of the arms that are trained here."""
    study = World(Path(tempfile.gettempdir())).plan("study=base", "scaling=base", "tracking=none")[0]
    return study.scaled.base.network


# --- H: the blog -----------------------------------------------------------------------------------------------------


@mutant("H1", "G1", PLANNED, "code", "the loop that should scale matches no layer, and copies nothing")
def copies_nothing(world: World) -> Caught:
    world.patch("src.arm.build", lambda network, classes, **rates: build(base_table(), classes, **rates))
    return world.trains("scaling=depth")


@mutant("H2", "G1", PLANNED, "code", "widths are edited as attributes; not a weight changes")
def edits_attributes(world: World) -> Caught:
    def edited(network: Network, classes: int, **rates: float) -> ConvNet:
        model = build(base_table(), classes, **rates)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.out_channels = int(1.5 * module.out_channels)
        return model

    world.patch("src.arm.build", edited)
    return world.trains("scaling=width")


@mutant("H3", "G1", PLANNED, "code", "a strided, widening block is copied behind itself")
def copies_a_strided_block(world: World) -> Caught:
    def deepened(network: Network, classes: int, **rates: float) -> ConvNet:
        model = build(base_table(), classes, **rates)
        stage = model.stages[1]
        model.stages[1] = nn.Sequential(stage[0], copy.deepcopy(stage[0]), *stage[1:])  # type: ignore[index]
        return model

    world.patch("src.arm.build", deepened)
    return world.trains("scaling=depth")


@mutant("H4", "G2", PLANNED, "code", "FLOPs are read from attributes that were edited after building")
def counts_attributes(world: World) -> Caught:
    def by_attributes(model: nn.Module, resolution: int) -> tuple[int, int]:
        total, sides = 0, {}

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            sides[module] = output.shape[-1] if output.ndim == 4 else 1

        hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        model(torch.zeros(1, 3, resolution, resolution))
        for hook in hooks:
            hook.remove()
        for module, side in sides.items():
            kernel = module.kernel_size[0] ** 2 if isinstance(module, nn.Conv2d) else 1
            wide = int(1.083 * getattr(module, "out_channels", 10))
            total += kernel * wide * module.weight.shape[1] * side * side
        return total, 2 * total

    world.patch("src.scaling.audit.fvcore_counts", by_attributes)
    return world.trains("scaling=width")


@mutant("H5", "G3", PLANNED, "code", "all arms are one net at other pixels, 1.9-fold apart in cost")
def arms_by_pixels(world: World) -> Caught:
    solve = planning._solve
    sides = iter((64, 72, 84))

    def one_net(base: Any, rule: Any, budget: float, currency: Any) -> Any:
        found = solve(base, rule, budget, currency)
        return dataclasses.replace(
            found, network=base.network, resolution=(side := next(sides)), price=found.base_price * (side / 32) ** 2
        )

    world.patch("src.planning._solve", one_net)
    return world.refused("scaling=depth,width,compound")


@mutant("H6", "G10", RECORDED, "records", "depth and width are one network by accident, with one run each")
def an_accidental_pair(world: World) -> Caught:
    def same(study: Path) -> None:
        drop_seeds(study, 1)
        change_records(study, "width", lambda run: {"architecture_sha256": "2.2-1.0", "resolution": 32})

    report = world.report(same)
    assert any(f.guard == "G1" and f.blocking and "same network" in f.text for f in report.findings)
    shutil.rmtree(report.folder)
    return world.named(same, "G10", blocks=True)


@mutant("H7", "G4", TRAINED, "code", "the best of all epochs is chosen on the test split")
def chooses_on_test(world: World) -> Caught:
    world.patch("src.data.module.ImageDataModule.val_dataloader", lambda data: data.open_test())
    return world.trains("recipe.epochs=2", "scaling=base")


@mutant("H8", "G4", PLANNED, "data", "the validation split is a copy of the test split")
def validates_on_test(world: World) -> Caught:
    root = write_tree(world.folder / "pets", {"train": 40, "test": 20})
    shutil.copytree(root / "test", root / "val")
    return world.trains(
        "scaling=base", "data=folder", f"data.root={root}", f"data.cache={world.folder / 'cache'}", clutter=False
    )


@mutant("H9", "G9", PLANNED, "code", "every arm starts from weights that were trained before")
def starts_pretrained(world: World) -> Caught:
    def trained(network: Network, classes: int, **rates: float) -> ConvNet:
        model = build(network, classes, **rates)
        model.train()
        model(torch.rand(4, 3, 32, 32))  # as little training as there can be: batch norm has seen four pictures
        return model

    world.patch("src.arm.build", trained)
    return world.trains("scaling=base")


@mutant(
    "H10", "G7", PLANNED, "code", "pictures are not normalised, and the augmentation that was declared is not there"
)
def does_not_normalise(world: World) -> Caught:
    idle = World(world.folder / "idle")
    idle.patch(
        "src.data.module.transforms.unmoved",
        lambda images, fill, asked, seed, first, whole, rows: transforms.Unmoved(images, None, rows),
    )
    said = idle.trains("scaling=base")
    assert said.where == PLANNED and "it does not act (guard G6)" in said.said
    world.patch(
        "src.data.transforms.lines",
        lambda mean, std, side: (torch.full((3 * side,), 1 / 255), torch.zeros(3 * side)),
    )
    return world.trains("scaling=base")


@mutant("H11", "G5", PLANNED, "config", "a constant rate for a handful of epochs")
def never_anneals(world: World) -> Caught:
    return world.refused("scaling=base", "recipe.epochs=5", "recipe.warmup=0", "recipe.final_learning_rate=1")


@mutant("H12", "G10", RECORDED, "records", "one run an arm, nothing of it kept")
def one_run(world: World) -> Caught:
    def alone(study: Path) -> None:
        drop_seeds(study, 1)
        for path in study.glob("*/predictions.npz"):
            path.unlink()

    report = world.report(alone)
    assert any(f.guard == "G8" and "cannot be recomputed" in f.text for f in report.findings)
    shutil.rmtree(report.folder)
    return world.named(alone, "G10", blocks=True)


@mutant("H13", "G8", RECORDED, "code", "sources change between the beginning of a run and its end")
def changes_under_way(world: World) -> Caught:
    world.patch("src.outcome.code_revision", lambda: "another0cell")
    return world.trains("scaling=base")


@mutant("H14", "G1", TRAINED, "code", "what is counted is a network built for counting; another one is trained")
def trains_another(world: World) -> Caught:
    real = fit.fit

    def swapped(network: ConvNet, data: Any, **options: Any) -> Any:
        return real(build(base_table(), 10, dropout=options["recipe"].dropout), data, **options)  # type: ignore[arg-type]

    world.patch("src.arm.fit", swapped)
    return world.trains("scaling=width")


@mutant("H15", "G14", VERIFIED, "document", "two numbers of the summary are swapped")
def swaps_numbers(world: World) -> Caught:
    study = world.report(drawn=True).folder
    text = (study / "summary.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| compound")]
    cells = rows[0].split("|")
    numbers = [i for i, cell in enumerate(cells) if any(c.isdigit() for c in cell)]
    cells[numbers[-1]], cells[numbers[-2]] = cells[numbers[-2]], cells[numbers[-1]]
    (study / "summary.md").write_text(text.replace(rows[0], "|".join(cells), 1))
    return world.verified(study)


# --- C: the poster ---------------------------------------------------------------------------------------------------


@mutant(
    "C1", "G13", PLANNED, "code", "squeeze-and-excitation is a quarter of the expanded width, in module and twin alike"
)
def wide_squeeze(world: World) -> Caught:
    real = layers.squeezed_channels
    world.patch("src.networks.blocks.squeezed_channels", lambda c_in, ratio: real(6 * c_in, ratio))
    world.patch("src.planning._solve", planning._solve.__wrapped__)  # what was solved before the fault is forgotten
    return world.refused("network=efficientnet_b0", "scaling=compound", "network.resolution=128")


@mutant("C2", "G2", RECORDED, "records", "FLOPs of all arms but compound are twice the multiply-adds")
def mixes_units(world: World) -> Caught:
    published = io.StringIO()
    with redirect_stdout(published):
        audit_command.main([str(ROOT / "docs" / "published" / "poster.csv")])
    assert "G2" in published.getvalue() and "twice" in " ".join(published.getvalue().split())

    def doubled(study: Path) -> None:
        for arm in ("depth", "width"):
            change_records(study, arm, lambda run: {"macs": 2 * run.macs, "price": 2.0 * run.macs})

    return world.named(doubled, "G2", blocks=True)


@mutant("C3", "G3", RECORDED, "records", "arms are 24.5 % apart in MACs")
def unmatched(world: World) -> Caught:
    def dearer(run: RunRecord) -> dict[str, Any]:
        macs = int(run.macs * 1.245)
        counts = {"macs": macs, "price": float(macs), "fvcore_total": int(1.07 * macs)}
        return {**counts, "train_macs": 3 * macs * run.steps * 64}

    return world.named(lambda study: change_records(study, "compound", dearer), "G3", blocks=True)


@mutant("C4", "G8", RECORDED, "records", "the table says 85.21 %, the run's own curve and predictions say 80 %")
def another_number(world: World) -> Caught:
    change = {"test_accuracy": 0.8521}
    return world.named(lambda study: change_records(study, "compound", lambda run: change), "G8", blocks=True)


@mutant("C5", "G8", RECORDED, "records", "a result is rewritten by hand without a run")
def rewrites_a_result(world: World) -> Caught:
    def by_hand(study: Path) -> None:
        path = first_of(study, "compound") / "record.json"
        path.write_text(path.read_text().replace('"train_seconds": 0.0', '"train_seconds": 9.0'))

    return world.named(by_hand, "G8", blocks=True)


@mutant("C6", "G8", TRAINED, "code", "the checkpoint was made by other code, of another width")
def foreign_checkpoint(world: World) -> Caught:
    real = torch.load
    other = World(world.folder).plan("study=other", "scaling=width", "tracking=none")[0].scaled.network

    def foreign(path: Any, **options: Any) -> Any:
        loaded = real(path, **options)
        if str(path).endswith("best.ckpt"):
            loaded["state_dict"] = {f"network.{k}": v for k, v in build(other, 10).state_dict().items()}
        return loaded

    world.patch("src.training.fit.torch.load", foreign)
    return world.trains("scaling=base")


@mutant(
    "C7", "G7", PLANNED, "code", "nets are evaluated at the pixels of the data set, not at those they were trained at"
)
def evaluates_small(world: World) -> Caught:
    real = ImageDataModule.prepare_batch

    def small(data: ImageDataModule, batch: RawBatch, *rest: Any) -> Any:
        images, labels = real(data, batch, *rest)
        return (interpolate(images, (28, 28)) if batch.seed == NO_AUGMENTATION else images), labels

    world.patch("src.data.module.ImageDataModule.prepare_batch", small)
    return world.trains("scaling=base")


@mutant("C8", "G11", RECORDED, "records", "an arm's runs guess: one class for every picture")
def guesses(world: World) -> Caught:
    def constant(study: Path) -> None:
        for path in sorted(study.glob("compound-*/predictions.npz")):
            with np.load(path) as stored:
                arrays = {name: stored[name] for name in stored.files}
            arrays["test_logits"] = np.tile(np.eye(10, dtype=np.float32)[1], (len(arrays["test_labels"]), 1))
            np.savez_compressed(path, **arrays)
        change_records(study, "compound", lambda run: {"test_accuracy": 0.1})

    report = world.report(constant)
    told = [f.text for f in report.findings if f.guard == "G11" and f.blocking]
    assert any("at chance" in text for text in told) and any("every test picture for class 1" in t for t in told)
    shutil.rmtree(report.folder)
    return world.named(constant, "G11", blocks=True)


@mutant("C9", "G8", VERIFIED, "records", "a checkpoint is overwritten by that of another run")
def overwritten(world: World) -> Caught:
    study = world.report(drawn=True).folder
    own, other = (first_of(study, arm) / "checkpoints" / "best.ckpt" for arm in ("depth", "width"))
    shutil.copy(other, own)
    return world.verified(study)


@mutant("C10", "G5", PLANNED, "code", "the rate is multiplied by the number of GPUs, of which there are none")
def rate_of_no_devices(world: World) -> Caught:
    real = Recipe.peak_learning_rate.fget
    assert real is not None
    world.patch("src.training.options.Recipe.peak_learning_rate", property(lambda recipe: real(recipe) * 0))
    return world.trains("scaling=base")


@mutant("C11", "G5", RECORDED, "config", "the rate of a batch of 4,096 is taken for one of 256")
def rate_of_another_batch(world: World) -> Caught:
    rate = (
        "recipe=paper_cifar",
        "recipe.batch_size=32",
        "recipe.learning_rate=0.256",
        "recipe.learning_rate_batch=256",
    )
    return world.trains("scaling=base", *rate, "recipe.schedule=cosine")


@mutant("C12", "G5", TRAINED, "code", "the schedule is for ten times as many epochs as are trained")
def cut_schedule(world: World) -> Caught:
    world.patch(
        "src.training.fit.Classifier",
        lambda network, recipe, steps, layout: Classifier(network, recipe, 10 * steps, layout),
    )
    return world.trains("scaling=base", "recipe.epochs=2")


@mutant("C13", "G6", TRAINED, "code", "averaged weights are built and never updated")
def idle_average(world: World) -> Caught:
    world.patch("src.training.averaging.StepAveraging._average", lambda self, averaged, current, updates: None)
    return world.trains("scaling=base")


@mutant("C14", "G13", PLANNED, "code", "RMSprop with epsilon 0.1 outside the root, and decay on batch norm and biases")
def another_rmsprop(world: World) -> Caught:
    decays = World(world.folder / "decays")
    real = optimizers.make_optimizer

    def on_all(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
        made = real(recipe, network)
        for group in made.param_groups:
            group["weight_decay"] = recipe.weight_decay
        return made

    decays.patch("src.training.liveness.make_optimizer", on_all)
    said = decays.trains("scaling=base")
    assert said.where == PLANNED and "is for weights alone" in said.said and "(guard G13)" in said.said
    plain = torch.optim.RMSprop
    world.patch(
        "src.training.optimizers.RMSpropTF",
        lambda groups, lr, alpha, momentum, eps: plain(groups, lr=lr, alpha=alpha, momentum=momentum, eps=0.1),
    )
    return world.trains("scaling=base", "recipe=paper_cifar", "recipe.batch_size=32")


@mutant("C15", "G13", PLANNED, "code", "batch norm with torch's momentum 0.1 and epsilon 1e-5")
def another_norm(world: World) -> Caught:
    def torch_norms(network: Network, classes: int, **rates: float) -> ConvNet:
        model = build(network, classes, **rates)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-5, 0.01
        return model

    world.patch("src.arm.build", torch_norms)
    return world.trains("scaling=base")


@mutant("C16", "G9", RECORDED, "config", "compound is trained with more dropout than the other arms")
def more_dropout(world: World) -> Caught:
    return world.named(_hashes(world, "recipe.dropout=0.3"), "G9", blocks=True)


@mutant("C17", "G9", RECORDED, "config", "one arm is augmented by a policy that is called future work")
def more_augmentation(world: World) -> Caught:
    return world.named(_hashes(world, "data.augmentation.policy=randaugment"), "G9", blocks=True)


def _hashes(world: World, override: str) -> Callable[[Path], None]:
    """Gives every record the recipe's hash, and compound's that of the recipe with one more override."""
    from src import config

    plain, other = (
        config.recipe_hash(world.plan("study=hash", "scaling=compound", "tracking=none", *more)[0].study)
        for more in ((), (override,))
    )

    def change(study: Path) -> None:
        change_records(study, "", lambda run: {"recipe_hash": other if run.arm == "compound" else plain})

    return change


@mutant("C18", "G7", PLANNED, "code", "evaluation cuts the centre out of pictures that training shows whole")
def crops_in_evaluation(world: World) -> Caught:
    real = ImageDataModule.prepare_batch

    def cropped(data: ImageDataModule, batch: RawBatch, *rest: Any) -> Any:
        if batch.seed == NO_AUGMENTATION and batch.images.ndim == 4:
            side = batch.images.shape[1]
            edge = round(side * 0.0625)
            batch = batch._replace(images=batch.images[:, edge : side - edge, edge : side - edge].contiguous())
        return real(data, batch, *rest)

    world.patch("src.data.module.ImageDataModule.prepare_batch", cropped)
    return world.trains("scaling=base")


@mutant("C19", "G4", TRAINED, "code", "the test split is evaluated again and again, and the maximum is kept")
def best_of_many_tests(world: World) -> Caught:
    real = fit.evaluate

    def best(module: Any, data: Any, split: str, hardware: Any) -> Any:
        tries = [real(module, data, split, hardware) for _ in range(2 if split == "test" else 1)]
        return max(tries, key=lambda found: found.accuracy)

    world.patch("src.arm.evaluate", best)
    return world.trains("scaling=base")


@mutant("C20", "G10", RECORDED, "records", "the seed does not reach training: three seeds, one result")
def idle_seed(world: World) -> Caught:
    same = {"weights_sha256": "w0"}
    return world.named(lambda study: change_records(study, "compound", lambda run: same), "G10", blocks=True)


@mutant("C21", "G5", PLANNED, "config", "the rate ends at 74 % of its peak, and the last epochs' noise ranks the arms")
def unannealed(world: World) -> Caught:
    return world.refused("scaling=base", "recipe.final_learning_rate=0.737")


@mutant("C22", "G13", PLANNED, "config", "powers of the compound coefficients go by the name of a released network")
def not_b2(world: World) -> Caught:
    stated = ("scaling.depth=1.44", "scaling.width=1.21", "scaling.pixels=296")
    return world.refused("network=efficientnet_b0", "scaling=b2", *stated)


@mutant("C23", "G14", VERIFIED, "document", "the report's arm is another than the trained one")
def another_arm(world: World) -> Caught:
    return world.edited("summary.md", "| compound", "| B2")


@mutant("C24", "G14", VERIFIED, "document", "the text says other pixels than were trained")
def other_pixels(world: World) -> Caught:
    study = world.report(drawn=True).folder
    path = study / "summary.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    for row in rows:
        row["resolution"] = "64" if row["arm"] == "compound" else row["resolution"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue())
    return world.verified(study)


@mutant("C25", "G14", PLANNED, "config", "pictures of 32 px are enlarged: cost without information")
def above_native(world: World) -> Caught:
    return world.planned(
        "study=above", "data=cifar10", "network=efficientnet_nano", "scaling=resolution", "tracking=none"
    )


@mutant("C26", "G2", PLANNED, "code", "parameters are counted without biases")
def leaves_out_biases(world: World) -> Caught:
    real = audit.inspect_module

    def without(model: ConvNet, resolution: int) -> audit.Audit:
        biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
        found = real(model, resolution)
        return dataclasses.replace(found, params=found.params - biases)

    world.patch("src.scaling.audit.inspect_module", without)
    return world.trains("scaling=width")


@mutant("C27", "G10", RECORDED, "records", "arms within 0.8 points are ranked on 1,000 test pictures")
def few_pictures(world: World) -> Caught:
    def thousand(study: Path) -> None:
        for path in study.glob("*/predictions.npz"):
            path.unlink()
        level = {"compound": 0.888, "depth": 0.884, "width": 0.886}
        change_records(
            study, "", lambda run: {"test_pictures": 1000, "test_accuracy": level[run.arm] + 0.001 * run.seed}
        )

    return world.named(thousand, "G10", blocks=False)


@mutant("C28", "G12", RECORDED, "records", "compound's maps are drawn at the base's pixels")
def maps_at_other_pixels(world: World) -> Caught:
    return world.named(_maps(lambda cam: {"images": cam.images[:, :32, :32]}), "G12", blocks=False)


@mutant("C29", "G7", PLANNED, "code", "the normalisation of another data set is undone: wrong colours under the maps")
def other_colours(world: World) -> Caught:
    real = transforms.denormalise
    world.patch(
        "src.data.transforms.denormalise",
        lambda images, mean, std: real(
            images, torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
        ),
    )
    return world.trains("scaling=base")


@mutant(
    "C30", "G12", TRAINED, "code", "maps are made of a tensor before batch norm and activation, not of what is pooled"
)
def maps_of_another_tensor(world: World) -> Caught:
    real = ConvNet.forward

    def forward(model: ConvNet, images: torch.Tensor) -> Outputs:
        before: list[torch.Tensor] = []
        hook = model.head[0].register_forward_hook(lambda module, inputs, output: before.append(output))  # type: ignore[index]
        logits, features = real(model, images)
        hook.remove()
        return Outputs(logits, before[0] if before else features)

    world.patch("src.networks.build.ConvNet.forward", forward)
    return world.trains("scaling=base")


@mutant(
    "C31",
    "G12",
    RECORDED,
    "records",
    "each arm's map is of the class it predicts, so columns explain different classes",
)
def maps_of_predictions(world: World) -> Caught:
    return world.named(_maps(lambda cam: {"labels": (cam.labels + 1) % 10}), "G12", blocks=False)


@mutant("C32", "G12", RECORDED, "records", "every run draws its own three pictures")
def own_pictures(world: World) -> Caught:
    return world.named(_maps(lambda cam: {"indices": cam.indices + 17}), "G12", blocks=False)


def _maps(changes: Callable[[Any], dict[str, Any]]) -> Callable[[Path], None]:
    """Changes the map files of compound."""

    def change(study: Path) -> None:
        for path in sorted(study.glob("compound-*/cam.npz")):
            cam = load_cam(path)
            dataclasses.replace(cam, **changes(cam)).save(path.parent)

    return change


@mutant("C33", "G12", RECORDED, "records", "maps with more cells look more detailed")
def finer_grid(world: World) -> Caught:
    finer = _maps(lambda cam: {name: np.repeat(np.repeat(getattr(cam, name), 2, 1), 2, 2) for name in MAPS})
    return world.named(finer, "G12", blocks=False)


MAPS = ("maps_label", "maps_predicted")


@mutant("C34", "G15", RECORDED, "records", "results come from two environments")
def two_environments(world: World) -> Caught:
    other = {"torch_version": "2.5.0"}
    return world.named(lambda study: change_records(study, "compound", lambda run: other), "G15", blocks=True)


@mutant("C35", "G15", PLANNED, "config", "a GPU is asked for, and a CPU build of torch trains in silence")
def no_such_device(world: World) -> Caught:
    world.patch("src.training.hardware.torch.cuda.is_available", lambda: False)
    return world.refused("scaling=base", "hardware=gpu", "tracking=none", hardware=True)


@mutant("C36", "G14", VERIFIED, "document", "compound's figure has resolution's title")
def another_title(world: World) -> Caught:
    study = world.report(drawn=True).folder
    path = study / "accuracy_vs_macs.svg"
    text = path.read_text()
    assert "compound" in text
    path.write_text(text.replace("compound", "resolution"))
    return world.verified(study)


@mutant("C37", "G8", RECORDED, "records", "the main figure has no data behind it")
def no_curves(world: World) -> Caught:
    return world.named(lambda study: (first_of(study, "depth") / "history.csv").unlink(), "G8", blocks=False)


@mutant("C38", "G8", RECORDED, "records", "nothing says with which code and packages a run was made")
def nameless(world: World) -> Caught:
    blank = {"code_revision": "unknown", "fvcore_version": "", "lightning_version": ""}
    report = world.report(lambda study: change_records(study, "width", lambda run: blank))
    assert any("do not say their lightning version and fvcore version" in f.text for f in report.findings)
    shutil.rmtree(report.folder)
    return world.named(lambda study: change_records(study, "", lambda run: blank), "G8", blocks=False)


@mutant("C39", "G14", VERIFIED, "document", "a sentence claims to match the paper, which has another data set")
def claims_a_match(world: World) -> Caught:
    return world.edited("summary.md", "## Verdict\n", "## Verdict\n\nWithin 0.5 % of the paper's B0.\n")


@mutant("C40", "G14", VERIFIED, "document", "the page explains a result by causes that nobody tested")
def explains(world: World) -> Caught:
    study = write_report(world.report(drawn=True).folder).folder
    path = study / "report.html"
    text = path.read_text()
    path.write_text(text.replace("</main>", "<p>Because there were too few epochs.</p></main>", 1))
    return world.verified(study)
