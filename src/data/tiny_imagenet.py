"""Tiny ImageNet (Stanford CS231n, 2015): 100,000 train and 10,000 val pictures of 64 x 64 in 200 classes, with boxes.

Read in its own layout: train/<class>/images/*.JPEG with train/<class>/<class>_boxes.txt, val/images/*.JPEG with
val/val_annotations.txt, words.txt with the names of classes; from the published archive (downloaded on first use), or
from what it unpacks to. The answers to its test/ were never published, so the published val/ is the sealed test split
and a part of train/ validates. Boxes are the published ones: first and last pixel of an object, one a picture.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data import folder
from src.data.download import by_hand, check_md5, fetch
from src.data.folder import Listing, Plan
from src.data.options import DataOptions
from src.data.overlap import check_apart
from src.data.progress import progress
from src.data.splits import DataFacts, ImageData, ImageSplit, SealedSplit, digest
from src.data.storage import make_once, require_space
from src.data.streaming import Names, size

SIDE = 64
ARCHIVE = "tiny-imagenet-200.zip"
FOLDER = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
# Its authors published no checksum; this is the one of the 248,100,043 bytes that public loaders agree on.
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
NEEDED = re.compile(
    rf"{FOLDER}/((train/(n\d+)/(\3_boxes\.txt|images/[^/]+\.JPEG))|val/(val_annotations\.txt|images/[^/]+\.JPEG)|words\.txt)"
)
ANNOTATIONS = "val_annotations.txt"
BLOCK = 4096  # bytes that a small file takes on most disks
HEADERS_SAMPLED = 16
# WordNet numbers and the first of the names in words.txt
_CLASSES = """
n01443537 goldfish; n01629819 European fire salamander; n01641577 bullfrog; n01644900 tailed frog;
n01698640 American alligator; n01742172 boa constrictor; n01768244 trilobite; n01770393 scorpion;
n01774384 black widow; n01774750 tarantula; n01784675 centipede; n01855672 goose; n01882714 koala;
n01910747 jellyfish; n01917289 brain coral; n01944390 snail; n01945685 slug; n01950731 sea slug;
n01983481 American lobster; n01984695 spiny lobster; n02002724 black stork; n02056570 king penguin;
n02058221 albatross; n02074367 dugong; n02085620 Chihuahua; n02094433 Yorkshire terrier; n02099601 golden retriever;
n02099712 Labrador retriever; n02106662 German shepherd; n02113799 standard poodle; n02123045 tabby;
n02123394 Persian cat; n02124075 Egyptian cat; n02125311 cougar; n02129165 lion; n02132136 brown bear;
n02165456 ladybug; n02190166 fly; n02206856 bee; n02226429 grasshopper; n02231487 walking stick; n02233338 cockroach;
n02236044 mantis; n02268443 dragonfly; n02279972 monarch; n02281406 sulphur butterfly; n02321529 sea cucumber;
n02364673 guinea pig; n02395406 hog; n02403003 ox; n02410509 bison; n02415577 bighorn; n02423022 gazelle;
n02437312 Arabian camel; n02480495 orangutan; n02481823 chimpanzee; n02486410 baboon; n02504458 African elephant;
n02509815 lesser panda; n02666196 abacus; n02669723 academic gown; n02699494 altar; n02730930 apron;
n02769748 backpack; n02788148 bannister; n02791270 barbershop; n02793495 barn; n02795169 barrel;
n02802426 basketball; n02808440 bathtub; n02814533 beach wagon; n02814860 beacon; n02815834 beaker;
n02823428 beer bottle; n02837789 bikini; n02841315 binoculars; n02843684 birdhouse; n02883205 bow tie;
n02892201 brass; n02906734 broom; n02909870 bucket; n02917067 bullet train; n02927161 butcher shop; n02948072 candle;
n02950826 cannon; n02963159 cardigan; n02977058 cash machine; n02988304 CD player; n02999410 chain; n03014705 chest;
n03026506 Christmas stocking; n03042490 cliff dwelling; n03085013 computer keyboard; n03089624 confectionery;
n03100240 convertible; n03126707 crane; n03160309 dam; n03179701 desk; n03201208 dining table; n03250847 drumstick;
n03255030 dumbbell; n03355925 flagpole; n03388043 fountain; n03393912 freight car; n03400231 frying pan;
n03404251 fur coat; n03424325 gasmask; n03444034 go-kart; n03447447 gondola; n03544143 hourglass; n03584254 iPod;
n03599486 jinrikisha; n03617480 kimono; n03637318 lampshade; n03649909 lawn mower; n03662601 lifeboat;
n03670208 limousine; n03706229 magnetic compass; n03733131 maypole; n03763968 military uniform; n03770439 miniskirt;
n03796401 moving van; n03804744 nail; n03814639 neck brace; n03837869 obelisk; n03838899 oboe; n03854065 organ;
n03891332 parking meter; n03902125 pay-phone; n03930313 picket fence; n03937543 pill bottle; n03970156 plunger;
n03976657 pole; n03977966 police van; n03980874 poncho; n03983396 pop bottle; n03992509 potter's wheel;
n04008634 projectile; n04023962 punching bag; n04067472 reel; n04070727 refrigerator; n04074963 remote control;
n04099969 rocking chair; n04118538 rugby ball; n04133789 sandal; n04146614 school bus; n04149813 scoreboard;
n04179913 sewing machine; n04251144 snorkel; n04254777 sock; n04259630 sombrero; n04265275 space heater;
n04275548 spider web; n04285008 sports car; n04311004 steel arch bridge; n04328186 stopwatch; n04356056 sunglasses;
n04366367 suspension bridge; n04371430 swimming trunks; n04376876 syringe; n04398044 teapot; n04399382 teddy;
n04417672 thatch; n04456115 torch; n04465501 tractor; n04486054 triumphal arch; n04487081 trolleybus;
n04501370 turnstile; n04507155 umbrella; n04532106 vestment; n04532670 viaduct; n04540053 volleyball;
n04560804 water jug; n04562935 water tower; n04596742 wok; n04597913 wooden spoon; n06596364 comic book;
n07579787 plate; n07583066 guacamole; n07614500 ice cream; n07615774 ice lolly; n07695742 pretzel;
n07711569 mashed potato; n07715103 cauliflower; n07720875 bell pepper; n07734744 mushroom; n07747607 orange;
n07749582 lemon; n07753592 banana; n07768694 pomegranate; n07871810 meat loaf; n07873807 pizza; n07875152 potpie;
n07920052 espresso; n09193705 alp; n09246464 cliff; n09256479 coral reef; n09332890 lakeside; n09428293 seashore;
n12267677 acorn
"""
CLASSES = dict(entry.split(" ", 1) for entry in " ".join(_CLASSES.split()).split("; "))

Boxes = NDArray[np.float32]


def facts(options: DataOptions) -> DataFacts:
    """What the data will be, without a download.

    Raises:
        ValueError: `data.root` does not hold it, or there is none and downloading is switched off.
    """
    place = _find(options)
    if place is not None and place.is_dir():
        return _facts(place, options)
    return DataFacts(options.name, tuple(CLASSES.values()), SIDE, has_boxes=True)


def check_available(options: DataOptions) -> None:
    """Whether the pictures are here or may be downloaded; does not try whether a download would work.

    Raises:
        ValueError: neither.
    """
    _find(options)


def prepare(options: DataOptions) -> None:
    """Download, unpack and decode, once for all processes; of the test split files are compared, and none is decoded.

    Raises:
        ValueError: splits share pictures.
    """
    plan, _ = _plan(options)
    check_apart(plan.files, Path(options.cache))
    for split in ("train", "val"):
        folder.pictures(plan, split, options)


def load(options: DataOptions) -> ImageData:
    """Open train and validation, which is cut out of the published train/, and seal the published val/ as test.

    The fingerprint covers names and sizes of all files, labels and boxes of all splits, and the decoder's version; no
    picture of the test split is read for it.
    """
    plan, boxes = _plan(options)
    described = hashlib.sha256(b"".join(boxes[split].tobytes() for split in plan.files)).hexdigest()
    fingerprint = digest(
        "tiny_imagenet", folder.VERSION, plan.facts.class_names, described,
        *(part for files in plan.files.values() for part in (list(files.names), files.sizes, files.labels)),
    )  # fmt: skip

    def split(name: str) -> ImageSplit:
        known = boxes[name] if plan.facts.has_boxes else None
        return ImageSplit(folder.pictures(plan, name, options), plan.files[name].labels, known, plan.rows[name])

    test = SealedSplit(len(plan.rows["test"]), lambda: split("test"))
    return ImageData(plan.facts, split("train"), split("val"), test, fingerprint)


def _find(options: DataOptions) -> Path | None:
    """The unpacked directory or the archive that `root` or the cache holds; None when it has to be downloaded."""
    if options.root is not None:
        root = Path(options.root).expanduser()
        for place in (root, root / FOLDER, root / ARCHIVE):
            if place.is_file() or (place / "val" / ANNOTATIONS).is_file():
                return place
        raise ValueError(
            f"data.root={options.root} holds no Tiny ImageNet: expected {ARCHIVE} or what it unpacks to, with train/"
            f" and val/{ANNOTATIONS}; for a folder a class use data.kind=folder"
        )
    unpacked, cached = _unpacked(options), _cache(options) / ARCHIVE
    if unpacked.exists():
        return unpacked
    if not cached.exists():
        if not options.download:
            raise ValueError(f"Tiny ImageNet is not in {cached.parent} and data.download=false: {by_hand(URL, cached)}")
        return None
    return cached


def _cache(options: DataOptions) -> Path:
    return Path(options.cache).expanduser() / "tiny_imagenet"


def _unpacked(options: DataOptions) -> Path:
    return _cache(options) / f"unpacked-{MD5}"


def _unpack(archive: Path, options: DataOptions) -> Path:
    """Unpack what is needed of a verified archive into the cache: all but the pictures without answers."""
    if archive.name != ARCHIVE:
        raise ValueError(f"data.root={archive} is not the Tiny ImageNet archive: its name should be {ARCHIVE}")

    def make(target: Path) -> None:
        check_md5(archive, ARCHIVE, MD5)
        try:
            with zipfile.ZipFile(archive) as source:
                members = [member for member in source.infolist() if NEEDED.fullmatch(member.filename)]
                require_space(
                    target.parent, sum(-(-member.file_size // BLOCK) * BLOCK for member in members), "make room"
                )
                made: set[Path] = set()
                with progress(f"unpacking {ARCHIVE}", len(members), unit="files") as tell:
                    for number, member in enumerate(members, start=1):
                        path = target / member.filename.removeprefix(f"{FOLDER}/")
                        if path.parent not in made:
                            path.parent.mkdir(parents=True, exist_ok=True)
                            made.add(path.parent)
                        with source.open(member) as content, path.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        tell(number)
        except (zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{archive} cannot be unpacked ({error}): fetch it again") from error
        if not (target / "val" / ANNOTATIONS).is_file():
            raise ValueError(f"{archive} holds no {FOLDER}/val/{ANNOTATIONS}: fetch it again")

    return make_once(_unpacked(options), make)


def _facts(root: Path, options: DataOptions) -> DataFacts:
    classes = _class_ids(root)
    names = tuple(CLASSES.values()) if classes == list(CLASSES) else _class_names(root, classes)
    return DataFacts(options.name, names, SIDE, (root / "train" / classes[0] / f"{classes[0]}_boxes.txt").is_file())


def _class_ids(root: Path) -> list[str]:
    train = root / "train"
    classes = sorted(entry.name for entry in os.scandir(train) if entry.is_dir()) if train.is_dir() else []
    if len(classes) < 2:
        raise ValueError(f"{train} holds {len(classes)} classes of Tiny ImageNet: unpack {ARCHIVE} again")
    return classes


def _class_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    """The first of a class's names in words.txt; its number where there is none, and beside a name that two have."""
    known = {}
    if (root / "words.txt").is_file():
        lines = (line.partition("\t") for line in _lines(root / "words.txt"))
        known = {number: names.split(",")[0].strip() for number, _, names in lines}
    names = [known.get(number) or number for number in classes]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({number})" for name, number in zip(names, classes, strict=True)
    )


def _plan(options: DataOptions) -> tuple[Plan, dict[str, Boxes]]:
    """Which files are which split, and the boxes of each split (n, 4) in pixel edges, NaN where a picture has none."""
    place = _find(options)
    if place is None:
        place = fetch(URL, _cache(options) / ARCHIVE, MD5, "Tiny ImageNet")
    if not place.is_dir():
        place = _unpack(place, options)
    found, classes = _facts(place, options), _class_ids(place)
    train = folder.list_files(place / "train", classes)
    val, val_boxes = _validation(place / "val", classes)
    for files in (train, val):
        _check_sides(files)
    known: dict[str, list[float]] = {}
    for number in classes:
        table = place / "train" / number / f"{number}_boxes.txt"
        if table.is_file():
            known.update((f"{number}/images/{row[0]}", corners) for row, corners in _rows(table, 0))
    none = [np.nan] * 4
    train_boxes = _inside(np.array([known.get(name, none) for name in train.names], np.float32))
    plan = folder.arrange(options, found, train, {"test": val})
    sources = {"train": train_boxes, "val": train_boxes, "test": val_boxes}
    return plan, {split: sources[split][plan.rows[split]] for split in plan.files}


def _validation(place: Path, classes: list[str]) -> tuple[Listing, Boxes]:
    """The published validation pictures in published order, with their boxes (n, 4)."""
    table, labels = place / ANNOTATIONS, {number: label for label, number in enumerate(classes)}
    found, boxes = [], []
    for (name, number), corners in _rows(table, 1):
        if number not in labels:
            raise ValueError(f"{table} names the class {number!r}, which train/ lacks: unpack {ARCHIVE} again")
        try:
            status = (place / "images" / name).stat()
        except OSError as error:
            raise ValueError(f"{table} names {name}, which images/ lacks: unpack {ARCHIVE} again") from error
        found.append((f"images/{name}", labels[number], status.st_size, status.st_mtime_ns))
        boxes.append(corners)
    if not found:
        raise ValueError(f"{table} is empty: unpack {ARCHIVE} again")
    columns = (np.array(column, np.int64) for column in list(zip(*found, strict=True))[1:])
    return Listing(place, Names.of(entry[0] for entry in found), *columns), _inside(np.array(boxes, np.float32))


def _inside(boxes: Boxes) -> Boxes:
    """What of the boxes (n, 4) lies in the picture, NaN where nothing does."""
    return folder.square_boxes(boxes, np.full((len(boxes), 2), SIDE), SIDE)


def _rows(table: Path, words: int) -> Iterator[tuple[list[str], list[float]]]:
    """Lines of a table: the file's name, `words` more words, and the box in pixel edges."""
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split("\t")
        try:
            x_min, y_min, x_max, y_max = map(int, cells[1 + words :])
        except ValueError as error:
            raise ValueError(f"{table}, line {number} is no box ({line!r}): unpack {ARCHIVE} again") from error
        yield cells[: 1 + words], [x_min, y_min, x_max + 1, y_max + 1]


def _lines(table: Path) -> list[str]:
    try:
        return table.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is no text in UTF-8 ({error}): unpack {ARCHIVE} again") from error


def _check_sides(files: Listing) -> None:
    for row in np.unique(np.linspace(0, len(files.names) - 1, HEADERS_SAMPLED).astype(int)):
        path = files.folder / files.names[row]
        width, height = size(path)
        if (width, height) != (SIDE, SIDE):
            raise ValueError(
                f"{path} has {width}x{height} pixels and Tiny ImageNet's pictures have {SIDE}x{SIDE}: for other"
                " pictures use data.kind=folder"
            )
