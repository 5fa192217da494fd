"""Reports over run folders that are written here number by number, so that every figure in a table has a closed form."""

import json
import math
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rlprune.errors import UserError
from rlprune.files import hold
from rlprune.report.collect import find_runs
from rlprune.report.comparison import interval
from rlprune.report.figures import _aside, accuracy_figure, pareto_front, style_of
from rlprune.report.networks import settings_of
from rlprune.report.page import DESKTOP, PHONE, text_of, write_report
from rlprune.report.report import Choices, make_report
from rlprune.report.table import LATEX, escape_latex, latex, markdown, natural, numbers
from rlprune.results.tables import CONTROL, JOINT

COLUMNS = (
    "dataset model target network settings top1 top5 before delta delta_control delta_baseline params macs sparsity latency candidates "
    "search_minutes seeds published"
).split()
SMALL = {"macs": 2000, "params": 600, "latency_ms": 1.0}
GROUPS = ["stem", "layer1.0.conv1", "layer2.0.conv1"]


def row(name, top1, level=0.0, **values):
    row = {"name": name, "level": level, "top1": top1, "standard_error": 0.003, "n": 1000, "top5": None, "search_top1": top1}
    row |= {"params": 1000, "macs": 4000, "sparsity": level, "latency_ms": 2.0}
    return row | values


def write_run(folder, agent="mcq", seed=0, top1=0.8, *, config=None, choices=None, metrics=True, **values):
    """A finished run that kept half of the MACs; `values` replace entries of result.json."""
    folder = Path("outputs") / folder
    folder.mkdir(parents=True)
    choices = {"model": "resnet20", "dataset": "digits", "agent": agent, "criterion": "l1", "reward": "accuracy", "recovery": "kd"} | (
        choices or {}
    )
    settings = {
        "seed": seed, "dense_seed": 0, "resume": None, "recovery.epochs": 1, "recovery.final_epochs": 2, "agent.noise_std": 0.1,
        "model.depth": 20, "model.width": 1.0, "model.shortcut": "B", "schedule.steps": 2, "budget.macs": 0.5, "training.epochs": 5,
        "paths.run": str(folder),
    } | (config or {})  # fmt: skip
    nested = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    (folder / "config.yaml").write_text(f"# model={choices['model']} dataset={choices['dataset']} agent={agent}\n" + yaml.safe_dump(nested))
    result = {
        "format": 1, "command": "prune", "choices": choices, "seed": seed, "dense_seed": settings["dense_seed"],
        "rows": [row("dense", 0.9), row("pruned 40 %", 0.3, 0.4, macs=2000), row("recovered 40 %", top1, 0.4, **SMALL)],
        "splits": {"train": 800, "search": 200, "search_used": 200, "test": 1000},
        "search": {"candidates": 50, "repeated": 3, "stopped": "", "steps": 2, "recovery_epochs": 3},
        "dense": f"outputs/dense/digits-{settings['dense_seed']}.safetensors", "search_split_seen": "no", "losses": [2.0, 1.0, 0.5],
        "targets": {"budget.macs": {"asked": 0.5, "reached": 0.5}}, "seconds": {"dense": 1.0, "search": 90.0, "recovery": 30.0},
        "versions": {"rlprune": "0.1.0", "torch": "2.15.0"}, "device": "a processor, 2 threads",
    } | values  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    if metrics:
        write_steps(folder, seed)
    return folder


def write_steps(folder, seed=0, steps=2, groups=GROUPS):
    lines = [
        {"step": step, "sparsity": 0.2 * step, "reward": 0.9 - 0.1 * step - 0.01 * seed, "accuracy_recovered": 0.8}
        for step in range(1, steps + 1)
    ]
    pd.DataFrame([line | {"recovery_seconds": 1.0} for line in lines]).to_csv(folder / "metrics.csv", index=False)
    layers = [
        {"step": step, "group": group, "units": 16 - 2 * step - index % 3}
        for step in range(steps + 1)
        for index, group in enumerate(groups)
    ]
    layers = [line | {"units": 16} if line["step"] == 0 else line for line in layers]
    pd.DataFrame(layers).to_csv(folder / "layers.csv", index=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def report_on(*patterns, **choices):
    given = {"select": {}, "rows": [], "average": [], "columns": COLUMNS, "sort": [], "baseline": "uniform", "mixed": False, "plots": False}
    return make_report(Choices(runs=list(patterns) or ["outputs/**"], **given | choices))


def lines_of(report, kind="final"):
    return {line.label: line for line in report.table.lines if line.kind == kind}


def csv_of(report):
    return numbers(report.table, report.columns).set_index("network")


def three_seeds(agent, top1s, **values):
    for seed, top1 in enumerate(top1s):
        write_run(f"{agent}-{seed}", agent, seed, top1, **values)


# -- numbers ---------------------------------------------------------------------------------------------------------------------------


def test_means_deviations_and_paired_differences():
    three_seeds("uniform", [0.80, 0.81, 0.82])
    three_seeds("mcq", [0.81, 0.83, 0.84])
    table = csv_of(report_on())
    assert table.loc["mcq", "top1_mean"] == pytest.approx(0.8266667)
    assert table.loc["mcq", "top1_std"] == pytest.approx(np.std([0.81, 0.83, 0.84], ddof=1))
    assert table.loc["mcq", "seeds"] == 3
    half = 4.302653 * np.std([1, 2, 2], ddof=1) / math.sqrt(3)  # Student's t at 2 degrees of freedom
    assert table.loc["mcq", "delta_baseline"] == pytest.approx(5 / 3)
    assert table.loc["mcq", "delta_baseline_low"] == pytest.approx(5 / 3 - half, abs=1e-5)
    assert table.loc["mcq", "delta_baseline_high"] == pytest.approx(5 / 3 + half, abs=1e-5)
    assert math.isnan(table.loc["uniform", "delta_baseline"])
    assert table.loc["mcq", "delta_dense"] == pytest.approx(100 * (0.8266667 - 0.9))
    text = markdown(report_on().table)
    assert "**82.67 ± 1.53**" in text
    assert "+1.67 [+0.23, +3.10]" in text
    assert "81.00 ± 1.00" in text
    assert "**81.00" not in text


def test_pairs_share_their_seed_and_their_dense_network():
    three_seeds("uniform", [0.80, 0.81, 0.82])
    for seed, top1 in ((1, 0.85), (2, 0.85), (7, 0.99)):
        write_run(f"mcq-{seed}", "mcq", seed, top1)
    assert lines_of(report_on())["mcq"].against["baseline"] == pytest.approx([4, 3])
    write_run("amc-0", "amc", 0, 0.9, dense="outputs/dense/another.safetensors")
    assert "baseline" not in lines_of(report_on())["amc"].against


def test_an_interval_needs_two_pairs():
    three_seeds("uniform", [0.8])
    three_seeds("mcq", [0.82])
    assert "+2.00 (n = 1)" in markdown(report_on().table)
    assert all(map(math.isnan, interval(np.array([2.0]))))
    assert "one seed says nothing of chance" in report_on().findings[0]


def test_what_can_be_told_from_the_baseline_is_said():
    three_seeds("uniform", [0.80, 0.81, 0.82])
    three_seeds("mcq", [0.81, 0.83, 0.84])
    three_seeds("amc", [0.70, 0.90, 0.83])
    assert report_on().findings == [
        "resnet20, MACs ≤ 50 %: highest is mcq, 82.67 % over 3 seeds; told from uniform by their 95 % intervals: mcq (+1.67)."
    ]


def test_a_dense_network_counts_once_and_the_control_serves_all():
    control = [row("dense", 0.9), row(CONTROL, 0.91), row("recovered 40 %", 0.8, 0.4)]
    write_run("uniform-0", "uniform", 0, rows=control)
    three_seeds("mcq", [0.81, 0.83, 0.84])
    report = report_on()
    table = csv_of(report)
    assert table.loc["dense", "seeds"] == table.loc[CONTROL, "seeds"] == 1
    assert lines_of(report)["mcq"].against["control"] == pytest.approx([-10, -8, -7])
    assert math.isnan(table.loc["dense", "candidates_mean"])  # what one of the runs has cost is not its cost
    write_run("amc-0", "amc", 0, 0.8, search={"candidates": 5, "recovery_epochs": 30})  # recovered for longer
    assert "control" not in lines_of(report_on())["amc"].against


def test_of_equal_rows_each_is_the_best_and_a_row_alone_is_not():
    three_seeds("mcq", [0.81])
    assert "**" not in markdown(report_on().table)
    three_seeds("uniform", [0.81])
    assert markdown(report_on().table).count("**81.00**") == 2


def test_a_row_over_fewer_seeds_is_not_the_best():
    three_seeds("uniform", [0.80, 0.81])
    three_seeds("mcq", [0.79, 0.80])
    three_seeds("amc", [0.99])
    assert "**80.50" in markdown(report_on().table)
    assert markdown(report_on().table).count("**") == 2
    assert "highest is uniform, 80.50 % over 2 seeds" in report_on().findings[0]


def test_a_metric_that_some_runs_lack():
    three_seeds("uniform", [0.8, 0.8])
    lacking = [
        row("dense", 0.9),
        {"name": "recovered 40 %", "level": 0.4, "top1": 0.8, "sparsity": 0.4, "latency_ms": None, "macs": "many"},
    ]
    write_run(
        "uniform-2", "uniform", 2, rows=lacking, seconds={}, search={}, device=None, versions=None, targets={"budget.macs": {"asked": 0.5}}
    )
    text = markdown(report_on().table)
    assert "1.00 (n = 2)" in text
    assert "600 (n = 2)" in text
    assert lines_of(report_on())["uniform"].values("top1").tolist() == [0.8] * 3
    write_report(report_on(plots=True), Path("out"))
    assert not [note for note in report_on(plots=True).notes if "could not" in note]


def test_where_the_size_is_free_no_row_is_the_best():
    for agent, top1 in (("uniform", 0.8), ("mcq", 0.85)):
        write_run(agent, agent, 0, top1, targets={}, config={"schedule.sparsity": None})
    assert "**" not in markdown(report_on().table)
    assert report_on().findings == []


def test_every_level_is_a_block_of_its_own():
    def rows(low, high):
        return [row("dense", 0.9), row("recovered 20 %", low, 0.2), row("recovered 50 %", high, 0.5)]

    targets = {"schedule.sparsity": {"asked": 0.5, "reached": 0.5}}
    write_run("a", "uniform", rows=rows(0.88, 0.7), targets=targets, config={"schedule.save_at": [0.2]})
    write_run("b", "mcq", rows=rows(0.87, 0.8), targets=targets, config={"schedule.save_at": [0.2]})
    report = report_on()
    found = [(line.target, line.name, line.against.get("baseline", [None])[0]) for line in report.table.lines if line.kind == "final"]
    assert found == [
        ("sparsity 20 %", "uniform", None), ("sparsity 20 %", "mcq", pytest.approx(-1)),
        ("sparsity 50 %", "uniform", None), ("sparsity 50 %", "mcq", pytest.approx(10)),
    ]  # fmt: skip
    assert [head for _, head in sorted(report.table.heads.items())] == ["resnet20", "resnet20, sparsity 20 %", "resnet20, sparsity 50 %"]


@pytest.mark.parametrize(
    ("targets", "config", "target"),
    [
        ({"budget.macs": 0.5, "budget.params": 0.3}, {}, "MACs ≤ 50 %, parameters ≤ 30 %"),
        ({"schedule.sparsity": 0.725}, {}, "sparsity 72.5 %"),
        ({}, {"budget.max_drop": 1.5, "schedule.sparsity": None}, "drop ≤ 1.5"),
        ({}, {"schedule.sparsity": None}, "free"),
    ],
)
def test_targets_in_words(targets, config, target):
    write_run("a", targets={key: {"asked": asked, "reached": asked} for key, asked in targets.items()}, config=config)
    assert lines_of(report_on())["mcq"].target == target


# -- what is one row -------------------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_a_setting_are_not_averaged():
    for noise in (0.1, 0.2):
        for seed in range(2):
            write_run(f"noise{noise}-{seed}", "mcq", seed, 0.8 + noise / 10, config={"agent.noise_std": noise})
    report = report_on()
    assert set(lines_of(report)) == {"mcq (noise_std=0.1)", "mcq (noise_std=0.2)"}
    assert "agent.noise_std=0.1" in markdown(report.table)
    swept = report_on(rows=["agent.noise_std"])
    assert [cell.text for cell in swept.table.rows[1]][1:3] == ["mcq", "0.1"]
    assert "settings" not in [column.heading for column in swept.table.columns]
    assert "mcq (noise_std=0.2)" in markdown(report_on(columns=["network", "top1"]).table)
    (line,) = lines_of(report_on(average=["agent.noise_std"])).values()
    assert len(line.networks) == 2
    assert "rows average over agent.noise_std = 0.1, 0.2" in report_on(average=["agent.noise_std"]).notes


def test_a_sweep_over_two_keys_is_one_table():
    for number, (alpha, noise) in enumerate([(0, 0.1), (0, 0.2), (0.5, 0.1), (0.5, 0.2)]):
        write_run(f"sweep/{number}", "mcq", 0, 0.8 + alpha / 10, config={"agent.noise_std": noise, "reward.alpha": alpha})
    table = csv_of(report_on("outputs/sweep", rows=["reward.alpha", "agent.noise_std"], sort=["-top1"]))
    pruned = table[table["kind"] == "final"]
    assert list(zip(pruned["reward.alpha"], pruned["agent.noise_std"], strict=True)) == [
        ("0.5", "0.1"),
        ("0.5", "0.2"),
        ("0", "0.1"),
        ("0", "0.2"),
    ]
    assert pruned["top1_mean"].tolist() == pytest.approx([0.85, 0.85, 0.8, 0.8])
    assert len(csv_of(report_on("outputs/sweep", rows=["seed"]))) == 5  # seeds are alike, the settings are not


def test_a_setting_that_an_older_version_had_not_tells_nothing_apart():
    write_run("old", "mcq", 0, 0.8)
    write_run("new", "mcq", 1, 0.8, config={"agent.shiny": True})
    assert len(lines_of(report_on())["mcq"].networks) == 2


def test_the_same_run_twice_is_not_two():
    write_run("first", "mcq", 0, 0.7)
    os.utime("outputs/first/result.json", (1, 1))
    write_run("again", "mcq", 0, 0.8)
    report = report_on()
    assert lines_of(report)["mcq"].values("top1").tolist() == [0.8]
    assert "outputs/first repeats outputs/again and does not count a second time" in report.notes


def test_what_differs_between_the_rows_is_noted():
    three_seeds("uniform", [0.8], choices={"criterion": "l1"})
    three_seeds("mcq", [0.8], choices={"criterion": "taylor"}, config={"schedule.steps": 9})
    assert "resnet20, MACs ≤ 50 %: not the same in all rows: criterion (l1, taylor); schedule.steps (2, 9)" in report_on().notes


def test_of_several_baselines_the_one_with_the_same_settings_is_meant():
    for criterion, top1 in (("l1", 0.7), ("taylor", 0.8)):
        write_run(f"uniform-{criterion}", "uniform", 0, top1, choices={"criterion": criterion})
    write_run("mcq", "mcq", 0, 0.85, choices={"criterion": "taylor"})
    assert lines_of(report_on())["mcq"].against["baseline"] == pytest.approx([5])


def test_other_widths_are_other_models():
    write_run("a", "mcq")
    write_run("b", "uniform", config={"model.width": 0.5})
    assert {line.model for line in report_on().table.lines} == {"resnet20", "resnet20 (width=0.5)"}
    assert "baseline" not in lines_of(report_on())["mcq"].against


def test_what_follows_another_run_says_whom():
    source = write_run("source", "reinforce")
    write_run("like", "like", config={"agent.run": str(source)})
    trained = [row("from scratch", 0.77, 0.4)]
    facts = {
        "like": str(source),
        "like_agent": "reinforce",
        "like_targets": {"budget.macs": {"asked": 0.5}},
        "model_settings": {"depth": 20},
    }
    write_run("scratch", "mcq", command="train", rows=trained, **facts)
    report = report_on(baseline="reinforce")
    assert set(lines_of(report)) == {"reinforce", "like reinforce", "reinforce, from scratch"}
    assert lines_of(report)["reinforce, from scratch"].against["dense"] == pytest.approx([-13])
    assert lines_of(report)["reinforce, from scratch"].against["baseline"] == pytest.approx([-3])


def test_a_follower_has_the_target_of_the_run_it_follows():
    source = write_run("source", "mcq", top1=0.8)
    write_run("like", "like", top1=0.82, targets={}, config={"agent.run": str(source), "budget.macs": None})
    assert lines_of(report_on(baseline="mcq"))["like mcq"].target == "MACs ≤ 50 %"
    assert lines_of(report_on(baseline="mcq"))["like mcq"].against["baseline"] == pytest.approx([2])


def test_followers_of_runs_with_other_settings_are_other_rows():
    for bound in (1, 2):
        for seed in range(2):
            source = write_run(f"source{bound}-{seed}", "reinforce", seed, config={"agent.drop_bound": bound})
            write_run(f"like{bound}-{seed}", "like", seed, config={"agent.run": str(source)})
            facts = {"command": "train", "like": str(source), "like_agent": "reinforce", "like_targets": {"budget.macs": {"asked": 0.5}}}
            write_run(f"scratch{bound}-{seed}", "mcq", seed, rows=[row("from scratch", 0.77, 0.4)], **facts)
    sizes = {label: len(line.networks) for label, line in lines_of(report_on()).items()}
    names = ("reinforce", "like reinforce", "reinforce, from scratch")
    assert sizes == {f"{name} (drop_bound={bound})": 2 for name in names for bound in (1, 2)}
    gone = write_run("lost", "like", 0, config={"agent.run": "outputs/gone"})
    assert "like gone" in lines_of(report_on(str(gone)))


def test_settings_within_a_choice_are_not_averaged_where_the_choice_differs_too():
    """Two weights of the teacher are two lines, also beside a run that has no teacher."""
    for seed, rho in enumerate((0.1, 0.9)):
        write_run(f"kd-{rho}", "mcq", seed, 0.8, choices={"recovery": "kd"}, config={"recovery.rho": rho})
    write_run("tuned", "mcq", 0, 0.8, choices={"recovery": "finetune"}, config={"recovery.rho": 0.0})
    assert sorted(len(line.networks) for line in lines_of(report_on()).values()) == [1, 1, 1]
    (line,) = lines_of(report_on(average=["recovery"])).values()  # a choice stands for all that is set in it
    assert len(line.networks) == 2
    write_run("again", "mcq", 1, 0.8, choices={"recovery": "finetune"}, config={"recovery.rho": 0.0})
    assert {line.settings.get("recovery.rho") for line in lines_of(report_on()).values()} == {"0.1", "0.9", "0"}


def test_numbers_that_differ_behind_six_digits_are_not_averaged():
    for seed, rate in enumerate((0.1234567, 0.1234568)):
        write_run(f"mcq-{seed}", "mcq", seed, config={"agent.noise_std": rate})
    assert set(lines_of(report_on())) == {"mcq (noise_std=0.1234567)", "mcq (noise_std=0.1234568)"}
    assert len(lines_of(report_on(select={"agent.noise_std": 0.1234568}))) == 1


def test_pairs_share_both_seeds():
    for agent, shift in (("uniform", 0.0), ("mcq", 0.01)):
        for seed in range(2):
            for dense_seed in range(2):
                top1 = 0.8 + 0.02 * seed + 0.05 * dense_seed + shift
                write_run(f"{agent}-{seed}-{dense_seed}", agent, seed, top1, config={"dense_seed": dense_seed})
    assert lines_of(report_on())["mcq"].against["baseline"] == pytest.approx([1, 1, 1, 1])
    swept = [line.against["baseline"].tolist() for line in report_on(rows=["seed"]).table.lines if line.name == "mcq"]
    assert swept == [pytest.approx([1, 1]), pytest.approx([1, 1])]


def test_a_control_that_recovered_in_another_way_is_no_control():
    control = [row("dense", 0.9), row(CONTROL, 0.91), row("recovered 40 %", 0.8, 0.4)]
    write_run("uniform", "uniform", 0, rows=control, choices={"recovery": "finetune"})
    write_run("mcq", "mcq", 0, choices={"recovery": "kd"})
    write_run("amc", "amc", 0, choices={"recovery": "finetune"})
    lines = lines_of(report_on())
    assert "control" not in lines["mcq"].against
    assert lines["amc"].against["control"] == pytest.approx([-11])


def test_controls_of_more_epochs_are_other_rows():
    control = [row("dense", 0.9), row(CONTROL, 0.91), row("recovered 40 %", 0.8, 0.4)]
    for number, epochs in enumerate((3, 3, 10)):
        write_run(f"run{number}", ("uniform", "mcq", "amc")[number], 0, rows=control, search={"recovery_epochs": epochs})
    lines = [line for line in report_on().table.lines if line.kind == CONTROL]
    assert [(line.settings["recovery epochs"], len(line.networks)) for line in lines] == [("3", 1), ("10", 1)]


def test_that_nobody_is_there_to_compare_with_is_said():
    three_seeds("mcq", [0.8])
    assert not any("no run of" in note for note in report_on().notes)
    three_seeds("uniform", [0.8])
    assert "no run of unifrom here, so no differences to it (did you mean uniform?)" in report_on(baseline="unifrom").notes


# -- data, published numbers, choices --------------------------------------------------------------------------------------------------


def test_runs_on_different_data_are_refused_unless_told():
    write_run("a", "mcq", 0, 0.8)
    write_run("b", "uniform", 0, 0.7)
    write_run("c", "uniform", 0, 0.9, splits={"train": 900, "search": 100, "test": 1000})
    with pytest.raises(
        UserError, match=r"different data or splits \(2 on digits \(800/200/1000 images\); 1 on digits \(900/100/1000"
    ) as error:
        report_on()
    assert "mixed=true" in str(error.value)
    report = report_on(mixed=True)
    assert report.table.columns[0].heading == "data"
    assert lines_of(report)["mcq"].against["baseline"] == pytest.approx([10])  # of the same data alone
    assert report_on(select={"agent": ["mcq"]}).table.lines


def test_published_numbers_stand_beside_the_same_model_on_the_same_data_alone():
    points = [row("dense", 0.93), row("recovered 40 %", 0.92, 0.4, macs=2000)]
    choices = {"model": "resnet56", "dataset": "cifar10"}
    settings = {"model.depth": 56, "agent.noise_std": None}
    write_run("a", "rlal", rows=points, choices=choices, config=settings)
    assert "RLAL" in markdown(report_on().table)
    for name, other in (("b", {"dataset": "imagefolder"}), ("c", {"model": "resnet110"})):
        write_run(name, "rlal", rows=points, choices=choices | other, config=settings)
        assert "published" not in markdown(report_on(f"outputs/{name}").table)
    write_run("d", "rlal", rows=points, choices=choices, config=settings | {"model.width": 0.5})
    assert "published" not in markdown(report_on("outputs/d").table)


def test_a_network_trained_from_scratch_is_on_the_data_of_the_run_it_follows():
    """Its own config.yaml names another data set, which `like` has overruled."""
    photos = {"dataset": "imagefolder"}
    source = write_run("mcq", "mcq", choices=photos, config={"dataset.root": "data/photos", "dataset.search_fraction": 0.1})
    facts = {"like": str(source), "like_agent": "mcq", "dataset_settings": {"root": "data/photos", "search_fraction": 0.1}}
    scratch = [row("from scratch", 0.77, 0.4)]
    write_run("scratch", "mcq", command="train", rows=scratch, choices=photos, model_settings={"depth": 20}, **facts)
    assert len({line.data for line in report_on().table.lines}) == 1


def test_values_are_selected_as_they_are_typed():
    write_run("a", "mcq", config={"agent.soft": True, "agent.layer": None})
    write_run("b", "mcq", config={"agent.soft": False, "agent.layer": "stem"})
    for select in ({"agent.soft": True}, {"agent.soft": "true"}, {"agent.layer": None}, {"agent.layer": ["null", "other"]}):
        assert [run.folder.name for run in report_on(select=select).runs] == ["a"]


def test_rows_are_in_the_order_of_their_numbers():
    for steps in (10, 9, 2.5):
        write_run(f"steps{steps}", "mcq", config={"schedule.steps": steps})
    order = ["2.5", "9", "10"]
    assert [line.keys["schedule.steps"] for line in report_on(rows=["schedule.steps"]).table.lines if line.keys] == order
    assert [line.settings["schedule.steps"] for line in report_on().table.lines if line.settings] == order
    backwards = report_on(sort=["-settings"], columns=["network", "settings", "candidates"]).table
    assert [line.settings.get("schedule.steps") for line in backwards.lines] == [*reversed(order), None]
    assert sorted(["b10", "b9", "a", "b", "b0.5", "b0.05"], key=natural) == ["a", "b", "b0.05", "b0.5", "b9", "b10"]


def test_the_columns_of_the_file_are_in_the_order_that_was_asked_for():
    three_seeds("mcq", [0.8])
    wanted = ["network", "candidates", "search_minutes", "seeds"]  # of which the dense network, the first row, has one
    found = list(numbers(report_on(columns=wanted).table, report_on(columns=wanted).columns))
    assert found == ["kind", "network", "candidates_mean", "search_minutes_mean", "seeds"]


def test_columns_rows_and_order_are_chosen():
    three_seeds("uniform", [0.80, 0.81])
    three_seeds("mcq", [0.85, 0.86])
    report = report_on(columns=["network", "top1", "speedup", "macs_removed", "minutes", "hardware"], sort=["-top1"])
    assert [column.heading for column in report.table.columns] == [
        "network",
        "top-1 %",
        "speed-up",
        "MACs removed %",
        "total min",
        "hardware",
    ]
    assert [line.name for line in report.table.lines] == ["dense", "mcq", "uniform"]
    cells = [cell.text for cell in report.table.rows[1]]
    assert cells[2:] == ["2.00×", "50.0", "2.0", "a processor, 2 threads"]
    assert report.table.heads == {}
    for key, value, words in (
        ("columns", ["topp1"], "columns: topp1 is no column (did you mean top1?)"),
        ("sort", ["-nope"], "sort: -nope is no column"),
        ("rows", ["agent.nope"], "rows: no run has agent.nope"),
        ("rows", ["agent"], None),
        ("rows", ["recovery"], None),
        ("rows", ["schedule"], "rows: schedule is a group of settings; name one of them, such as schedule.steps"),
        ("select", {"agent": "amc"}, "select.agent=amc: no run has it; there are mcq, uniform"),
        ("select", {"nope": 1}, "select.nope=1: no run has nope; name"),
        ("select", {"agent.noise_sdt": 1}, "no run has agent.noise_sdt (did you mean agent.noise_std?)"),
        ("select", {"schedule": 1}, "select.schedule=1: schedule is a group of settings"),
        ("average", ["agent.noise_sdt"], "average: no run has agent.noise_sdt (did you mean agent.noise_std?)"),
        ("columns", [], "columns=[]: name one at least; there are dataset"),
    ):
        if words is None:
            assert report_on(**{key: value}).table.lines
        else:
            with pytest.raises(UserError, match=re.escape(words)):
                report_on(**{key: value})


# -- runs that are not finished --------------------------------------------------------------------------------------------------------


def test_runs_that_cannot_be_used_are_listed_each_with_its_reason():
    three_seeds("mcq", [0.8])
    for name in ("failed", "killed", "going"):
        folder = write_run(name, "amc", metrics=name != "failed")
        (folder / "result.json").unlink()
    Path("outputs/failed/failed.json").write_text('{"error": "dataset.root: is no folder"}')
    newer = write_run("newer", "mcq", 1, format=2, versions={"rlprune": "9.0.0"})
    torn = write_run("torn", "mcq", 2)
    (torn / "result.json").write_text((torn / "result.json").read_text()[:200])
    write_run("garbled", "mcq", 3, rows=[row("dense", 1.7)])
    write_run("empty", "mcq", 4, rows=[])
    write_run("lacking", "mcq", 5, choices={"model": None})
    write_run("wrong", "mcq", 6, splits=[1, 2])
    with hold(Path("outputs/going/config.yaml")):
        report = report_on()
    assert {str(run.folder).removeprefix("outputs/"): run.state for run in report.open_runs} == {
        "failed": "failed", "killed": "unfinished", "going": "in progress", "newer": "not readable", "torn": "not readable",
        "garbled": "not readable", "empty": "not readable", "lacking": "not readable", "wrong": "not readable",
    }  # fmt: skip
    text = text_of(report)
    assert "outputs/failed: dataset.root: is no folder" in text
    assert "outputs/killed: no result.json: unfinished, step 2 done, 40.0 % of the channels gone, 80.00 % on the search split" in text
    assert "outputs/newer: was written by rlprune 9.0.0 in format 2, this is" in text
    assert "outputs/torn: outputs/torn/result.json: is not valid JSON" in text
    assert len(lines_of(report)["mcq"].networks) == 1
    assert newer.exists()


def test_a_run_of_a_later_version_in_a_format_that_is_known_is_used_and_named():
    write_run("a", "mcq", versions={"rlprune": "99.1", "torch": "2.15.0"})
    report = report_on()
    assert lines_of(report)
    assert any("1 run was written by a later version" in note for note in report.notes)


def test_a_run_in_progress_alone_is_a_report_and_a_failed_one_alone_is_an_error():
    folder = write_run("going", "mcq")
    (folder / "result.json").unlink()
    report = report_on(plots=True)
    assert [plot.name for plot in report.plots] == ["open-rewards"]
    assert write_report(report, Path("out")).startswith("No run is finished yet.")
    (folder / "metrics.csv").unlink()
    (folder / "failed.json").write_text('{"error": "out of memory"}')
    with pytest.raises(UserError, match=r"none of 1 runs there is finished; outputs/going: out of memory"):
        report_on()
    with pytest.raises(UserError, match=r"runs=nowhere/\*: no run of prune or train matches"):
        report_on("nowhere/*")


@pytest.mark.parametrize(
    "values",
    [
        {"seconds": "long"}, {"seconds": [1]}, {"search": [1]}, {"splits": {"train": "many"}},
        {"choices": {"reward": None}}, {"choices": {"criterion": [1]}},
        {"rows": [row("dense", 0.9), row("recovered", True, 0.4)]}, {"rows": [row("dense", 0.9), row("recovered", "0.8", 0.4)]},
        {"rows": [row("dense", 0.9), row("recovered", 10**400, 0.4)]}, {"rows": [row("dense", 0.9), row("recovered", math.nan, 0.4)]},
    ],
)  # fmt: skip
def test_a_result_of_wrong_types_is_listed(values):
    three_seeds("uniform", [0.8])
    write_run("wrong", **values)
    (run,) = report_on().open_runs
    assert run.state == "not readable"
    assert "the file is damaged" in run.why


@pytest.mark.parametrize(
    "values",
    [
        {"losses": 2},
        {"device": ["a"]},
        {"search": {"recovery_epochs": 10**400}},
        {"seconds": {"search": 10**400, "test": "x"}},
        {"like": 5},
    ],
)
def test_wrong_values_of_what_may_be_absent_are_absent(values):
    write_run("a", **values)
    write_report(report_on(plots=True), Path("out"))
    assert Path("out/report.html").exists()


def test_a_name_too_long_for_a_file_is_no_model():
    write_run("a", choices={"model": "m" * 300})
    assert lines_of(report_on())


@pytest.mark.parametrize("text", ["a: &x {b: *x}", "? [a]\n: b", "[" * 2000, "\0"])
def test_a_config_that_leads_nowhere_is_none(text):
    three_seeds("uniform", [0.8])
    folder = write_run("a")
    (folder / "config.yaml").write_text(text)
    assert "mcq" in lines_of(report_on())
    (folder / "result.json").write_text("{")
    assert [run.state for run in report_on(select={"agent": "uniform"}).open_runs] == ["not readable"]  # nothing says whose it was


def test_a_layers_file_of_words_costs_its_plots():
    folder = write_run("a")
    (folder / "layers.csv").write_text("step,group,units\nzero,stem,16\none,stem,8\n")
    assert not {"steps", "channels"} & {path.stem for path in _plots_of("outputs/a")}
    (folder / "layers.csv").write_text("step,group,units\n0,stem,\n1,stem,\n")
    assert not {"steps", "channels"} & {path.stem for path in _plots_of("outputs/a")}


def _plots_of(pattern):
    write_report(report_on(pattern, plots=True), Path("out"))
    return list(Path("out/plots").iterdir())


def test_an_error_of_many_lines_is_one_line():
    three_seeds("uniform", [0.8])
    folder = write_run("failed")
    (folder / "result.json").unlink()
    (folder / "failed.json").write_text(json.dumps({"error": "first\nsecond" + " and so on" * 1000}))
    (run,) = report_on().open_runs
    assert run.why.startswith("first second and")
    assert len(run.why) < 600


def test_sensitivities_alone_are_a_report_that_can_be_read():
    folder = write_run("alone", command="sensitivity")
    (folder / "sensitivity.csv").write_text("group,share,drop\n")
    text = write_report(report_on(), Path("out"))
    assert "No run of prune or train is here" in text
    assert "No run of prune or train is here" in Path("out/report.html").read_text()
    assert len(pd.read_csv("out/report.csv")) == len(pd.read_csv("out/runs.csv")) == 0
    assert Path("out/report.tex").read_text().startswith("%")


def test_half_written_tables_cost_a_plot_at_most():
    three_seeds("uniform", [0.8])
    folder = write_run("mcq-0", "mcq", 0, 0.82)
    (folder / "layers.csv").write_text('step,group,units\n0,stem,16\n1,"st')
    (folder / "metrics.csv").write_text("step,rew")
    (folder / "episodes.csv").write_bytes(b"\xff\xfe\x00")
    write_report(report_on(plots=True), Path("out"))
    assert {path.name for path in Path("out").iterdir()} == {"report.md", "report.csv", "report.tex", "report.html", "runs.csv", "plots"}


def test_the_glob_finds_runs_in_sweeps_and_nothing_else():
    write_run("sweep/10_mcq", "mcq", 1)
    write_run("sweep/2_mcq", "mcq", 0)
    for other in ("evaluate", "report", "inspect"):
        folder = Path(f"outputs/{other}/x")
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text({"report": "runs: x", "evaluate": "run: y", "inspect": "verify: true"}[other])
        if other == "evaluate":
            (folder / "result.json").write_text(json.dumps({"command": "evaluate", "rows": []}))
    everywhere = ("outputs/**", "outputs/*", "outputs/sweep", "outputs/sweep/*", "outputs/sweep/*/result.json", "outputs/**/config.yaml")
    for pattern in everywhere:
        assert [run.folder.name for run in find_runs([pattern])] == ["2_mcq", "10_mcq"], pattern


def test_a_folder_with_brackets_is_meant_as_it_stands():
    write_run("a [1]/b*", "mcq")
    write_run("a [1]/bc", "mcq")
    assert [run.folder.name for run in find_runs(["outputs/a [1]/b*"])] == ["b*"]
    assert [run.folder.name for run in find_runs(["outputs/**/b*"])] == ["b*", "bc"]
    assert [run.folder.name for run in find_runs(["outputs/a [1]"])] == ["b*", "bc"]
    assert [run.folder.name for run in find_runs(["outputs/a [1]/**/result.json"])] == ["b*", "bc"]
    assert len(find_runs(["**"])) == len(find_runs(["**/*"])) == len(find_runs([f"{Path.cwd()}/**"])) == 2


def test_links_that_lead_round_in_circles_end():
    folder = write_run("sweep/a", "mcq")
    for name in ("up", "down", "round"):
        (folder / name).symlink_to("..")
    (folder / "self").symlink_to("self")
    Path("outputs/elsewhere").symlink_to(folder.resolve())
    (run,) = find_runs(["outputs/**", "outputs/*", str(Path("outputs").resolve() / "**")])
    assert run.folder == folder or run.folder.name == "elsewhere"


# -- files -----------------------------------------------------------------------------------------------------------------------------


VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words, self.cells = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "srcset") or (name == "href" and not value.startswith("#"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def full_report():
    three_seeds("uniform", [0.80, 0.81, 0.82])
    three_seeds("mcq", [0.81, 0.83, 0.84])
    for seed in range(3):
        episodes = pd.DataFrame({"reward": np.linspace(0, 1, 20), "best": np.linspace(0, 1, 20), "critic_loss": np.linspace(2, 1, 20)})
        episodes.to_csv(f"outputs/mcq-{seed}/episodes.csv", index=False)
    return report_on(plots=True)


def test_the_page_holds_everything_and_loads_nothing():
    report = full_report()
    write_report(report, Path("out"))
    text = Path("out/report.html").read_text()
    page = Page(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 2 * len(report.plots) == 14
    words = " ".join(page.words)
    for part in ("82.67 ± 1.53", "+1.67 [+0.23, +3.10]", "resnet20, MACs ≤ 50 %", "outputs/mcq-2"):
        assert part in words
    assert {path.stem for path in Path("out/plots").iterdir()} == {plot.name for plot in report.plots}
    assert [plot.name for plot in report.plots] == ["accuracy", "differences", "steps", "channels", "rewards", "losses", "time"]


def test_what_a_run_says_cannot_write_into_the_page():
    write_run("a", "mcq", device="<script>alert(1)</script>", config={"agent.noise_std": "<b>&|$_%"})
    write_run("b", "mcq", config={"agent.noise_std": "plain"})
    write_report(report_on(), Path("out"))
    assert "<script>" not in Path("out/report.html").read_text()
    assert r"<b>&\|$_%" in Path("out/report.md").read_text()
    assert r"\textless{}b\textgreater{}\&\textbar{}\$\_\%" in Path("out/report.tex").read_text()


def test_latex_is_a_whole_table_in_plain_letters():
    report = full_report()
    text = latex(report.table, "50 % of ResNet_20 & more")
    assert text.isascii()
    lines = text.splitlines()
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + len(report.table.lines)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(report.table.columns) - 1}
    assert r"\textbf{82.67 $\pm$ 1.53}" in text
    assert r"\caption{50 \% of ResNet\_20 \& more}" in text
    for letter in LATEX:
        assert re.fullmatch(r"[ -~]*", escape_latex(letter))
    assert escape_latex("ü") == "?"


def test_no_value_breaks_a_row_of_latex():
    write_run("a", "mcq", config={"agent.noise_std": "[b]\n\x07c"})
    write_run("b", "mcq", config={"agent.noise_std": "*"})
    text = latex(report_on(columns=["network", "top1"], rows=["agent.noise_std"]).table, "caption")
    assert "[b] ?c" in text
    columns = report_on(columns=["settings", "top1"]).table
    columns.rows[1][0] = type(columns.rows[1][0])("[1]")
    assert "\n{}[1] & " in latex(columns, "caption")


def test_files_of_numbers_can_be_computed_with():
    write_report(full_report(), Path("out"))
    table, runs = pd.read_csv("out/report.csv"), pd.read_csv("out/runs.csv")
    assert len(table) == 3
    assert runs["network"].value_counts().to_dict() == {"mcq": 3, "uniform": 3, "dense": 1}
    means = runs[runs["kind"] == "final"].groupby("network")["top1"].mean()
    assert table.set_index("network").loc[means.index, "top1_mean"].tolist() == pytest.approx(means.tolist())


@pytest.mark.no_cover
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_labels_of_every_plot_are_whole(width):
    """No text leaves its figure, whatever the names and however many groups there are."""
    groups = [f"features.denseblock{index // 20}.denselayer{index}.conv1" for index in range(60)]
    for agent in ("uniform", "mcq", "amc", "random_search", "a_long_name_of_an_agent_of_the_user"):
        for seed in range(2):
            noise = {"agent.noise_std": 0.1 + 0.1 * (agent == "mcq" and seed), "agent.another_long_setting": seed if agent == "amc" else 0}
            folder = write_run(f"{agent}-{seed}", agent, seed, 0.5 if agent == "amc" else 0.8 + 0.01 * seed, config=noise)
            write_steps(folder, seed, steps=30, groups=groups)
            pd.DataFrame({"reward": [0.1, 0.2], "best": [0.1, 0.2], "critic_loss": [2, 1]}).to_csv(folder / "episodes.csv", index=False)
    report = report_on(plots=True)
    assert len(report.plots) == 7
    for plot in report.plots:
        figure = plot.draw(width)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for text in texts_of(figure):
            box = text.get_window_extent(canvas.get_renderer())
            across = figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
            inside = across and figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1
            assert inside, f"{plot.name} at {width} inches: {text.get_text()!r} leaves the figure"


def texts_of(figure):
    """What is written in a figure; of ticks those that are within their axis' limits, as the others are not drawn."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]
    texts = [*figure.texts, *(text for legend in legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


def test_a_network_that_was_never_trained_does_not_squeeze_the_others():
    write_run("uniform", "uniform", 0, 0.82)
    untrained = [row("dense", 0.1), row("recovered 40 %", 0.8, 0.4, **SMALL)]
    write_run("mcq", "mcq", 0, rows=untrained, config={"training.epochs": 0}, dense="outputs/dense/none.safetensors")
    lines = report_on().table.lines
    figure = accuracy_figure(lines, style_of([line.label for line in lines]), DESKTOP)
    assert figure.axes[0].get_ylim()[0] > 70
    assert "not shown: dense (epochs=0) 10.0 %" in " ".join(text.get_text().replace("\n", " ") for text in figure.axes[0].texts)


def test_a_legend_has_room_for_what_is_drawn_and_no_more():
    for number in range(12):
        rows = [row("dense", 0.9), row(JOINT, 0.85), row("recovered 40 %", 0.82, 0.4)]
        write_run(f"rlal-{number}", "rlal", 0, rows=rows, config={"agent.learning_rate": number})
    lines = report_on().table.lines
    drawn = [line for line in lines if line.kind != JOINT]
    assert len(drawn) < len(lines)
    style = style_of([line.label for line in lines])
    assert accuracy_figure(lines, style, PHONE).get_figheight() == accuracy_figure(drawn, style, PHONE).get_figheight()


def test_many_networks_of_one_size_stay_near_their_size():
    assert _aside([0.0, 1.0]) == [0.0, 0.0]
    for number in (2, 8, 40):
        moved = _aside([0.0, *[1.0] * number])
        assert moved[0] == 0.0
        assert len(set(moved[1:])) == number
        assert max(map(abs, moved)) < 0.08


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_long_titles_take_no_room_from_their_panels(width):
    for number in range(8):
        bits = {f"agent.{name}_that_has_a_long_name": number >> place & 1 for place, name in enumerate(("one", "another", "a_third"))}
        write_run(f"mcq-{number}", "mcq", config=bits)
    (plot,) = (plot for plot in report_on(plots=True).plots if plot.name == "rewards")
    figure = plot.draw(width)
    FigureCanvasAgg(figure).draw()
    assert all(axes.get_title(loc="left").count("\n") > 1 for axes in figure.axes)  # lines of a title
    assert all(axes.get_window_extent().height / figure.dpi > 1 for axes in figure.axes)


def test_the_pareto_front_is_what_nothing_beats():
    points = [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (4.0, 0.9), (4.0, 0.8), (math.nan, 1.0)]
    assert pareto_front(points, least=True) == [(1.0, 0.5), (2.0, 0.7), (4.0, 0.9)]
    assert pareto_front(points, least=False) == [(4.0, 0.9)]


# -- the command -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("runs=",), "runs=: must be a glob"),
        (("runs=[]",), "must be a glob"),
        (("runs={a: 1}",), "must be a glob"),
        (("select=abc",), "select=abc: must be a mapping"),
        (("columns=abc",), "columns"),
        (("columns=[[top1]]",), "must be a list of names, such as columns=[a,b]"),
        (("sort=[{a: 1}]",), "sort=[{'a': 1}]: must be a list of names"),
        (("select={agent: amc}",), "select.agent=amc: no run has it; there are mcq"),
        (("rowz=[a]",), "rowz: no such key (did you mean rows?)"),
        (("columns=[network,oops]",), "columns: oops is no column"),
    ],
)
def test_bad_input_is_one_line(rlprune, line, words):
    write_run("a")
    code, _, err = rlprune("report", *line)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not list(Path("outputs/report").glob("*/report.*"))


def test_select_is_typed_as_the_yaml_shows(rlprune):
    three_seeds("uniform", [0.80, 0.81])
    three_seeds("mcq", [0.82, 0.84])
    columns = "columns=[network,seeds]"
    code, out, _ = rlprune("report", "select={model: resnet20, agent: [mcq, amc], recovery.epochs: 1}", columns, "plots=false")
    assert code == 0
    assert "| mcq     | 2     |" in out
    assert "uniform" not in out


def test_the_command_prints_its_table_and_says_where_the_page_is(rlprune):
    three_seeds("uniform", [0.80, 0.81])
    three_seeds("mcq", [0.82, 0.84])
    code, out, _ = rlprune("report", "runs=[outputs/mcq-*,outputs/uniform-*]", "plots=false", "columns=[network,top1,seeds]")
    assert code == 0
    assert "| mcq     | **83.00 ± 1.41** | 2     |" in out
    (page,) = Path("outputs/report").glob("*/report.html")
    assert str(page.parent) in out
    assert time.time() - page.stat().st_mtime < 60
    some = "select={dataset: digits, agent: [mcq, amc], budget.macs: 0.5}"
    code, out, _ = rlprune("report", some, "plots=false", "columns=[network,seeds]")
    assert (code, "mcq" in out, "uniform" in out) == (0, True, False)


def test_a_report_needs_no_torch():
    """Which takes longer to import than a table to make."""
    write_run("a")
    code = "import sys; from rlprune import cli; code = cli.main(['report']); sys.exit(code or 7 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, unbuffered):
    """As in `rlprune report | head`; the files are written."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    write_run("a")
    line = [sys.executable, "-c", "from rlprune.cli import entry; entry()", "report", "plots=false"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
    assert len(list(Path("outputs/report").glob("*/report.html"))) == 1
    assert not list(Path("outputs/report").glob("*/failed.json"))


def test_who_measures_and_who_watches_is_no_setting_of_a_run():
    settings = {"evaluator._target_": "x", "evaluator.workers": 2, "tracker.mode": "online", "schedule.steps": 3, "device": "cpu"}
    run = SimpleNamespace(choices={"reward": "flops"}, settings=settings, source=None)
    assert settings_of(run) == {"reward": "flops", "schedule.steps": "3"}
