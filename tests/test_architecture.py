"""Imports run one way, and the test split is opened in one place."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "rlprune"
LAYERS = [
    {"errors", "seeding", "files", "launch", "memory", "skeleton", "plan", "shipped", "streams"},
    {
        "checkpoint",
        "cost",
        "compose",
        "config",
        "distributed",
        "grid",
        "kernels",
        "latency_model",
        "places",
        "provenance",
        "sync_batch_norm",
    },
    {"graph", "rl"},
    {"agents", "criteria", "rewards", "models", "data", "trackers", "latency"},
    {"training", "results", "setup", "search", "report", "export", "benchmark", "evaluators"},
    {"api"},  # the composition root of calls from Python, as the commands are that of lines
    {"cli"},
    {"commands", "__main__"},
    {"plugins"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PLUGINS = {"agents", "criteria", "rewards", "models", "trackers"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlprune."):
            yield node.module.split(".")[1:]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("rlprune."))


def modules():
    return [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem != "__init__"]


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} → {'.'.join(name)}" for path in modules() for name in imports(path) if RANK[name[0]] > RANK[part(path)]
    ]
    assert wrong == []


def test_a_plugin_never_imports_its_sibling():
    for path in modules():
        if part(path) in PLUGINS:
            for name in imports(path):
                assert name[0] != part(path) or name[1] == "base", f"{path} imports {name}"


def test_the_test_split_is_opened_in_one_place():
    callers = {
        path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "read_test"
    }
    assert callers == {"final_test.py"}


def test_only_config_instantiates_and_only_commands_know_hydra():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert ("hydra.utils" in text) == (path.name == "config.py"), path
        # compose is how a call from Python gets the configuration that a line would have
        assert "hydra" not in text.lower() or part(path) in {"commands", "config", "compose", "cli", "results", "plugins"}, path


def test_help_and_wrong_keys_need_no_torch():
    code = "import sys; from rlprune import cli; cli.main([]); cli.main(['prune', 'agent.nope=1']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
