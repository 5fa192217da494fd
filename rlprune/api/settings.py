"""The arguments of a call as the configuration that the command line would have."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlprune.compose import compose
from rlprune.errors import UserError
from rlprune.skeleton import PruneConfig

SECTIONS = ("agent", "criterion", "reward", "schedule", "recovery", "search")  # of the yaml files, that a call listens to
ARGUMENTS = {  # keys of the yaml files that are arguments of a call
    **{f"budget.{name}": name for name in ("macs", "params", "latency", "max_drop")},
    **{f"schedule.{name}": name for name in ("sparsity", "steps", "min_keep", "round_to", "max_sparsity")},
}
UNUSED = {  # what means nothing here
    "schedule.joint": "networks come trained; rlprune prune agent=rlal trains and prunes at once",
    "search.execution": "candidates are cut to their widths",
    "recovery.control": "pass control=True",
}


def configured(
    words: Mapping[str, str | None],
    recovery: str | Mapping[str, Any] | None,
    targets: Mapping[str, float | None],
    limits: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    control: bool,
    seed: int,
    ignore: Sequence[str],
) -> PruneConfig:
    """The configuration that the command line would have for this call.

    Raises:
        UserError: an unknown choice or key, or a value that cannot be.
    """
    if isinstance(ignore, str):
        raise UserError(f"ignore={ignore!r}: must be a list of names or regular expressions, [{ignore!r}]")
    choices = {group: word for group, word in words.items() if word is not None}
    values: dict[str, Any] = {}
    if isinstance(recovery, Mapping):
        values |= {f"recovery.{'optimizer.lr' if name == 'lr' else name}": value for name, value in recovery.items()}
    elif recovery is not None:
        choices["recovery"] = recovery
    for key, value in settings.items():
        section = key.partition(".")[0]
        if section in ("recovery", "optimizer@recovery.optimizer") and "." not in key.removeprefix("optimizer@recovery."):
            choices[key] = value
        elif key in ARGUMENTS:
            raise UserError(f"{ARGUMENTS[key]}: is an argument of its own; leave it out of settings")
        elif section not in SECTIONS or "." not in key:
            raise UserError(f"settings: {key} is no key of {', '.join(SECTIONS)}; write it as on the command line, such as agent.stages")
        else:
            values[key] = value
    for key in values:
        if key in UNUSED:
            raise UserError(f"{key}: is not for compress: {UNUSED[key]}")
    by_name = {name: key for key, name in ARGUMENTS.items()}
    values |= {by_name[name]: value for name, value in targets.items()}
    values |= {by_name[name]: value for name, value in limits.items() if value is not None}
    values |= {"recovery.control": control, "seed": seed, "ignore": list(ignore)}
    config: PruneConfig = compose("prune", choices=choices, settings=values)
    if config.schedule.joint:
        raise UserError(f"agent={choices.get('agent')}: {UNUSED['schedule.joint']}; compress takes the other agents")
    return config


@contextmanager
def as_arguments() -> Iterator[None]:
    """Errors name the arguments of a call instead of the keys of the command line."""
    try:
        yield
    except UserError as error:
        message = re.sub(r"\bnull\b", "None", str(error))
        for key, name in ARGUMENTS.items():
            message = re.sub(rf"\b{re.escape(key)}\b", name, message)
        if message == str(error):
            raise
        raise UserError(message) from error.__cause__
