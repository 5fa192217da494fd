"""`rlprune <command> [key=value ...]`: finds the command and turns every expected failure into one line. Imports no torch."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO, cast

from rlprune.errors import UserError, explain_os_error, has_working_directory, printable
from rlprune.files import tidy_on_sigterm
from rlprune.launch import Launch, launched, report_failure
from rlprune.streams import Lasting, forget_readers, open_standard_streams

COMMANDS = {
    "train": "train a dense network and keep it for later runs",
    "prune": "search, prune, recover: the main job",
    "evaluate": "measure a pruned network, or any checkpoint, on the test split",
    "export": "write a pruned network as ONNX or torch.export file, checked against torch",
    "sensitivity": "measure what each channel group costs when it is pruned alone",
    "bench": "time the dense and the pruned network of a run on this machine",
    "inspect": "show and draw a network's channel groups, its cost, and what a run removed; prove the groups",
    "report": "one table over many runs",
}

TOGETHER = ("train", "prune")  # that several processes can carry out

CONFIG_PACKAGES = ("hydra", "omegaconf", "antlr4", "yaml")  # what they raise is about settings
VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}  # options with a value


def usage() -> str:
    """What `rlprune` alone prints."""
    lines = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
    return (
        f"rlprune {version('rlprune')}: channel pruning of CNNs, decided by reinforcement learning\n\n"
        f"usage: rlprune <command> [key=value ...]\n\n{lines}\n\n"
        "  rlprune prune model=vgg19 agent=mcq     the line to start with\n"
        "  rlprune prune --help                    every setting of a command\n"
        "  rlprune prune --cfg job                 the configuration a line stands for\n"
        "  rlprune prune -m agent=mcq,uniform      several runs\n"
        '  eval "$(rlprune -sc install=bash)"      completion in bash (zsh, fish likewise)'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 2 the user can mend it, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    here = launched()
    if here is not None and here.rank > 0:
        return _follow(here, arguments[0]) if _together(arguments) else 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"rlprune {version('rlprune')}")
        return 0
    if arguments[0] in ("-sc", "--shell-completion", "--shell_completion"):
        return _complete(arguments)
    if arguments[0] not in COMMANDS:
        return _fail("rlprune", f"{arguments[0]}: no such command; choose one of {', '.join(COMMANDS)}")
    if here is None:
        return run(arguments[0], arguments[1:])
    if not _together(arguments):
        return _fail(arguments[0], f"torchrun: starts {' and '.join(TOGETHER)} alone, of one run; start this line without it: rlprune ...")
    return _lead(here, arguments[0], arguments[1:])


def _together(arguments: list[str]) -> bool:
    """Whether all processes that torchrun has started take part in a line."""
    return bool(arguments) and arguments[0] in TOGETHER and not {"-m", "--multirun"} & set(arguments)


def _lead(here: Launch, command: str, arguments: list[str]) -> int:
    """Carry a line out with the processes of other ranks."""
    from rlprune.distributed import leading

    try:
        with leading(here) as group:
            code = run(command, arguments)
        if code == 0:  # otherwise others may be in the middle of something, and learn of it when this process has ended
            group.end()
        return code
    except UserError as error:
        return _fail(command, str(error))


def _follow(here: Launch, command: str) -> int:
    """Take part in what rank 0 does until it is done, or gone: it decides how the run ends."""
    from rlprune.distributed import LostError, joined
    from rlprune.training.team import Team

    warnings.simplefilter("ignore")  # rank 0 says the same
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        group = joined(here)
    except UserError as error:
        return _fail(command, f"rank {here.rank}: {error}")
    try:
        team = Team(group)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            while True:
                team.answer()
    except LostError:
        group.end()
        return 0
    except Exception as error:
        known = isinstance(error, UserError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        if not known:
            traceback.print_exc()
        return 2 if group.fail(message) else _fail(command, f"rank {here.rank}: {message}")


def run(command: str, arguments: list[str]) -> int:
    """Hand a command's arguments to Hydra and translate what goes wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    saved = sys.argv, sys.stderr, logging.raiseExceptions
    sys.stderr = cast(TextIO, Lasting(sys.stderr))
    sys.argv = [f"rlprune {command}", *options_first(arguments)]
    logging.raiseExceptions = False  # a log that cannot be written, as on a full disk, is worth no traceback a line
    try:
        with tidy_on_sigterm():
            import_module(f"rlprune.commands.{command}").main()
        sys.stdout.flush()  # here, where it can be told that nobody reads any more
    except UserError as error:
        return _fail(command, str(error))
    except KeyboardInterrupt as error:
        return _fail(command, "interrupted; what was finished is kept", code=getattr(error, "code", 130))
    except BrokenPipeError:  # as in `rlprune report | head`
        forget_readers()
        return 141
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        gone = isinstance(error, OSError) and not has_working_directory()
        message = None if gone else explain_config_error(error, command)  # first, as some of Hydra's errors are OSErrors too
        if message is None and isinstance(error, OSError):
            message = explain_os_error(error)
        if message is None:
            raise
        return _fail(command, message)
    finally:
        sys.argv, sys.stderr, logging.raiseExceptions = saved
        _clear_hydra()
    return 0


def options_first(arguments: list[str]) -> list[str]:
    """Options before settings: argparse does not take them in between."""
    options, settings, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("-"):
            options.append(word)
            if word in VALUED:
                options += [value for value in [next(words, None)] if value is not None]
        else:
            settings.append(word)
    return options + settings


def explain_config_error(error: Exception, command: str) -> str | None:
    """One line for what Hydra and OmegaConf refuse; None for anything else."""
    if "Config group override must be" in str(error):
        return f"a group was set to null; name a choice, such as model=resnet20 (rlprune {command} --help lists them)"
    if "Only one of --run" in str(error):
        return "-m and --cfg: go not together; leave one of them out"
    if type(error).__module__.split(".")[0] not in CONFIG_PACKAGES:
        if _raised_in(error) not in CONFIG_PACKAGES:
            return None
        subject = _full_key(str(error)) or "a setting"
        return f"{subject}: cannot be read ({type(error).__name__}: {_brief(error)}); write key=value, and for a group the NAME of a choice"
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = "\n".join(str(link) for link in chain)
    if found := re.search(r"(?:User|Value)Error raised while resolving interpolation: (.*)", text):
        return found[1]
    if found := re.search(r"Could not (?:find|load) 'hydra/launcher/((joblib|submitit)\w*)'", text):
        return f"hydra/launcher={found[1]}: is not installed; pip install 'rlprune[{found[2]}]'"
    if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        from rlprune.config import conf_dir

        names = sorted(path.stem for path in (conf_dir() / found[1]).glob("*.yaml"))
        return f"{found[1]}={found[2]}: unknown; choose one of {', '.join(names) or 'none'}"
    if found := re.search(r"Could not override '([^']+)'", text):
        preset = next((word for word in sys.argv if word.startswith("experiment=")), None)
        if preset is not None and not any(word.lstrip("+~").startswith(found[1]) for word in sys.argv):
            other = "train" if command == "prune" else "prune"
            return f"{preset}: sets {found[1]}, which is not there; is it a preset of rlprune {other}, or does another choice lack it?"
        return f"{found[1]}: no such key{_nearest_key(found[1], command)}; `rlprune {command} --cfg job` shows all"
    if found := re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text):
        return f"{_full_key(text) or 'a key'}={found[1]}: must be of type {found[2].lower()}"
    unread = next((str(link.override) for link in chain if hasattr(link, "override")), None)
    if unread is not None or (found := re.search(r"Error parsing override '(.*?)'", text)):
        typed = found[1] if unread is None and found else unread
        return f"{typed}: is no setting; write key=value, and quote values with special characters: 'key=\"a b\"', 'key=[\"a[0]\",b]'"
    if (key := _full_key(text)) is not None and "is not a ListConfig" in text:
        return f"{key}: must be a list, such as {key}=[a,b]"
    if key is not None:
        return f"{key}: {str(chain[-1]).splitlines()[0]}"
    return " ".join(str(error).split())


def _raised_in(error: BaseException) -> str:
    """The package whose code raised an exception."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else str(last.tb_frame.f_globals.get("__name__")).split(".")[0]


def _brief(error: BaseException) -> str:
    """What an exception says, in a part of a line."""
    text = (str(error).splitlines() or [""])[0]
    return text if len(text) <= 200 else f"{text[:200]} …"


def _full_key(text: str) -> str | None:
    found = re.search(r"full_key: (\S+)", text)
    return found.group(1) if found else None


def _nearest_key(key: str, command: str) -> str:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from rlprune.config import conf_dir, suggestion

    def keys(node: dict[str, Any], prefix: str = "") -> Iterable[str]:
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")

    _clear_hydra()
    with initialize_config_dir(config_dir=str(conf_dir().resolve()), version_base="1.3"):
        known = cast(dict[str, Any], OmegaConf.to_container(compose(config_name=command)))
        return suggestion(key, keys(known))


def _complete(arguments: list[str]) -> int:
    """Shell completion. The shell calls it without the command, so that is read from the line being typed."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if "query" in " ".join(arguments[1:]) and (
        len(words) < 2 or words[1] not in COMMANDS or line.rstrip() == f"{words[0]} {words[1]}" == line
    ):
        typed = words[1] if len(words) > 1 else ""
        print("\n".join(name for name in COMMANDS if name.startswith(typed)))
        return 0
    command = words[1] if len(words) > 1 and words[1] in COMMANDS else "prune"
    if line:
        os.environ["COMP_LINE"] = re.sub(rf"^(\s*\S+\s+){command}\s", r"\1", line)
    return run(command, arguments)


def _fail(command: str, message: str, code: int = 2) -> int:
    message = printable(" ".join(message.split()))
    line = f"rlprune {command}: {message}" if command != "rlprune" else f"rlprune: {message}"
    print(line, file=sys.stderr)
    if launched() is not None:
        report_failure(line)
    return code


def _clear_hydra() -> None:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


def entry() -> None:
    """The console script."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal may lack letters such as ×
    sys.exit(main())
