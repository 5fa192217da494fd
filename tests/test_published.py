import pytest
import yaml

from rlprune.config import conf_dir
from rlprune.errors import UserError
from rlprune.results import published
from rlprune.results.published import published_for, read_published

VGG19 = {"depth": 19, "width": 1.0, "classifier": "wide"}
RESNET56 = {"depth": 56, "width": 1.0, "shortcut": "B"}


def rows(**wanted):
    return [entry for entry in read_published() if all(getattr(entry, key) == value for key, value in wanted.items())]


def test_numbers_are_those_of_the_papers():
    (row,) = rows(source="RL-Pruner, Table 1", model="vgg19", variant="accuracy-based", sparsity=60)
    assert (row.dense, row.top1, row.delta, row.macs_reduction, row.params_reduction) == (72.89, 73.00, 0.11, 43.55, 79.46)
    assert (row.agent, row.dataset, row.model_settings, row.choices) == ("mcq", "cifar100", {"classifier": "wide"}, {"reward": "accuracy"})
    (row,) = rows(method="RLAL", model="resnet56", agent="rlal")
    assert (row.dense, row.top1, row.delta, row.macs_reduction) == (93.41, 93.86, 0.45, 50.0)
    (row,) = rows(method="HRank")
    assert (row.delta, row.note) == (-1.09, "anomaly: the paper prints a delta of -0.09")
    (cifar10, cifar100) = rows(method="N2N")
    assert (cifar10.delta, cifar100.delta) == (0.18, -4.21)
    assert (cifar10.params_reduction, cifar100.params_reduction) == pytest.approx((100 - 100 / 11.10, 100 - 100 / 4.64), abs=0.005)
    (row,) = rows(method="RLAL", dataset="imagenet", model_settings={"name": "resnet34", "weights": None})
    assert (row.top1, row.dense_top5, row.delta_top5) == (73.31, 91.48, -0.23)
    (row,) = rows(agent="reinforce", model="vgg16", variant="b = 3")
    assert (row.top1, row.delta, row.macs_reduction) == (89.2, -3.5, pytest.approx(100 - 100 * 0.6 / 3.1, abs=0.05))
    assert [row.top1 for row in rows(method="from scratch")] == [72.60, 72.10, 69.50]


def test_tables_are_whole():
    sizes = {"RL-Pruner, Table 1": 60, "RL-Pruner, Table 2": 23, "RL-Pruner, Table 3": 21, "RL-Pruner, Table 4": 6, "FPRL, Table 2": 16}
    sizes |= {"FPRL, section 4.4": 2, "RLP, Table 1": 8, "RLAL, Table 1": 15, "RLAL, Table 2": 28, "RLAL, Table 3": 3}
    assert {source: len(rows(source=source)) for source in sizes} == sizes
    assert len(read_published()) == sum(sizes.values())


@pytest.mark.parametrize("entry", read_published(), ids=lambda entry: f"{entry.source}-{entry.method}-{entry.model}")
def test_a_row_agrees_with_itself_or_says_that_it_does_not(entry):
    if entry.top1 is None:
        assert (entry.dense, entry.delta is not None) == (None, True)
    elif not (entry.note or "").startswith("anomaly"):
        assert entry.top1 == pytest.approx(entry.dense + entry.delta, abs=0.02)


def test_the_two_rows_of_one_dense_network_name_one_accuracy():
    for dataset, model in {(entry.dataset, entry.model) for entry in rows(source="FPRL, Table 2")}:
        first, second = rows(source="FPRL, Table 2", dataset=dataset, model=model)
        agree = first.dense == pytest.approx(second.dense, abs=0.005)
        assert agree == (first.note is None)  # METHODS: ResNet-34 on CIFAR-100 contradicts itself


def test_the_nearest_operating_point_within_five_points():
    found = published_for("mcq", "vgg19", VGG19, "cifar100", 1 - 0.44, 0.5)
    assert (found.source, found.sparsity, found.variant) == ("RL-Pruner, Table 1", 60, "accuracy-based")
    assert published_for("mcq", "vgg19", VGG19, "cifar100", 1 - 0.48, None).macs_reduction == 47.43  # parameter-based
    chosen = published_for("mcq", "vgg19", VGG19, "cifar100", 1 - 0.48, None, choices={"reward": "accuracy", "agent": "mcq"})
    assert chosen.macs_reduction == 50.42  # Table 2, which names no reward
    assert published_for("mcq", "vgg19", VGG19, "cifar100", 0.1, None) is None
    assert published_for("rlal", "resnet56", RESNET56, "cifar10", 0.55, None).top1 == 93.86
    assert published_for("rlal", "resnet56", RESNET56, "cifar10", 0.551, None) is None
    assert published_for("rlal", "resnet56", RESNET56 | {"shortcut": "A"}, "cifar10", 0.5, None).top1 == 93.86  # the paper does not say
    assert published_for("amc", "resnet56", RESNET56, "cifar10", 0.5, 0.3).top1 == 91.90


def test_sparsity_counts_where_there_are_no_macs():
    assert published_for("mcq", "vgg19", VGG19, "cifar100", None, 0.2).sparsity == 20
    found = published_for("mcq", "vgg19", VGG19, "cifar100", 0.05, 0.75)  # far from all MACs; Table 3 names none
    assert (found.source, found.top1, found.macs_reduction) == ("RL-Pruner, Table 3", 71.60, None)
    assert published_for("rlal", "resnet56", RESNET56, "cifar10", None, 0.5) is None
    assert published_for("mcq", "vgg19", VGG19, "cifar100", None, None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "amc"},
        {"agent": "uniform"},
        {"dataset": "cifar10"},
        {"dataset": "imagefolder"},
        {"model": "vgg16"},
        {"model_settings": VGG19 | {"width": 0.5}},
        {"model_settings": VGG19 | {"classifier": "slim"}},
        {"model": "no-such"},
    ],
)
def test_other_networks_data_and_agents_have_no_number(change):
    asked = {"agent": "mcq", "model": "vgg19", "model_settings": VGG19, "dataset": "cifar100", "macs_share_kept": 0.56, "sparsity": None}
    assert published_for(**asked) is not None
    assert published_for(**asked | change) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top2": 3}, r"top2: no such key \(did you mean top1\?\)"),
        ({"model": "vgg20"}, "model=vgg20: is not shipped"),
        ({"agent": "sac"}, "agent=sac: is not shipped"),
        ({"choices": {"reward": "speed"}}, "reward=speed: is not shipped"),
        ({"model_settings": {"depht": 3}}, r"model\.depht: is no setting of model=vgg19"),
        ({"dataset": "imagefolder"}, "dataset=imagefolder: must be one of cifar10, cifar100, imagenet"),
        ({"dense": "72.89"}, "dense=72.89: must be a number from 0 to 100"),
        ({"dense": 172.89}, "dense=172.89: must be a number"),
        ({"dense": None}, "delta: cannot be known"),
        ({"sparsity": None}, "sparsity, macs_reduction, params_reduction: one must be given"),
        ({"method": None}, "method: is missing"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    block = {"source": "Paper, Table 1", "method": "M", "model": "vgg19", "dataset": "cifar100", "dense": 72.89}
    row = {"top1": 72.0, "sparsity": 50}
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump([block | {"rows": [row]}]))
    assert published._read(path)[0].delta == -0.89
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump([block | {"rows": [row | change]}]))
    with pytest.raises(UserError, match=f"wrong.yaml: Paper, Table 1, .*: {message}"):
        published._read(path)


def test_the_file_is_among_what_the_wheel_ships():
    assert (conf_dir() / "published.yaml").is_file()
