"""Each option is described once, where it is checked: the settings class makes the options of its command."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError
from pipeline.config import CPU_BATCH_SIZE, GPU_BATCH_SIZE, LabelConfig, build_config
from serve.config import CPU_BATCH_SIZE as SERVE_CPU_BATCH_SIZE
from serve.config import GPU_BATCH_SIZE as SERVE_GPU_BATCH_SIZE
from serve.config import MAX_GPU_CPUS, MIN_QUEUE, SHARED_REPLICAS, ServeConfig
from tools.cli_page import PAGE, build_page

LABEL = {"source": ("a.tar",), "output": "out"}
COMMANDS = [pytest.param("label", LabelConfig, LABEL, id="label"), pytest.param("serve", ServeConfig, {}, id="serve")]


def options_of(command: str) -> dict[str, Any]:
    found: Any = typer.main.get_command(build_app())
    return {param.name: param for param in found.commands[command].params}


def shown_default(text: str) -> str | None:
    found = re.search(r"\[default: (.*?)\]", text)
    return found[1] if found else None


@pytest.mark.parametrize(("command", "settings", "given"), COMMANDS)
def test_every_setting_is_an_option_with_its_description_and_its_default(command, settings, given):
    options = options_of(command)
    defaults = settings(**given)

    for name, field in settings.model_fields.items():
        option = options[name]
        assert option.param_type_name == "argument" or f"--{name.replace('_', '-')}" in option.opts
        assert option.help.startswith(field.description), name
        default = getattr(defaults, name)
        if name not in given and not isinstance(default, bool | tuple | None):
            said = shown_default(option.help)
            assert said is not None, name
            assert settings.model_validate({**given, name: said}) == defaults, name


@pytest.mark.parametrize(
    ("command", "name", "default"),
    [
        pytest.param("label", "batch_size", f"{CPU_BATCH_SIZE} on a CPU, {GPU_BATCH_SIZE} on a GPU", id="by device"),
        pytest.param("label", "address", "$RAY_ADDRESS, else a local Ray", id="by environment"),
        pytest.param(
            "serve", "batch_size", f"{SERVE_CPU_BATCH_SIZE} on a CPU, {SERVE_GPU_BATCH_SIZE} on a GPU", id="of serve"
        ),
        pytest.param("serve", "replica_cpus", f"1; with a GPU up to {MAX_GPU_CPUS}", id="by machine"),
        pytest.param("serve", "max_queue", f"{MIN_QUEUE} or more", id="by batch"),
        pytest.param(
            "serve", "max_replicas", f"as fit; on a joined cluster one less, at most {SHARED_REPLICAS}", id="by cluster"
        ),
        pytest.param("label", "overwrite", None, id="a switch is off"),
    ],
)
def test_a_default_that_depends_is_said_in_words(command, name, default):
    assert shown_default(options_of(command)[name].help) == default


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        pytest.param(["--carry", "a,b"], "carry", ("a", "b"), id="columns"),
        pytest.param(["--actors", "1:3"], "actors", "1:3", id="text"),
        pytest.param(["--gpus-per-actor", "0.5"], "gpus_per_actor", 0.5, id="number"),
        pytest.param(["--embeddings"], "embeddings", True, id="switch"),
        pytest.param(["--precision", "INT8"], "precision", "int8", id="any case"),
        pytest.param(["--shape", "two-stage"], "shape", "two-stage", id="hidden"),
        pytest.param(["b.tar"], "source", ("a.tar", "b.tar"), id="several sources"),
        pytest.param([], "model", "resnet18-v2", id="default"),
    ],
)
def test_what_is_given_arrives_as_the_setting_has_it(monkeypatch, words, name, value):
    seen = []
    monkeypatch.setattr("pipeline.job.run", lambda settings, **more: seen.append(settings) or 1 / 0)

    CliRunner().invoke(build_app(), ["label", "a.tar", "-o", "out", *words])

    (settings,) = seen
    assert getattr(settings, name) == value


def test_a_switch_has_no_opposite_and_a_number_must_be_one():
    for words in (["--no-embeddings"], ["--top-k", "many"]):
        done = CliRunner().invoke(build_app(), ["label", "a.tar", "--output", "out", *words])
        assert (done.exit_code, words[0] in done.output) == (2, True)


def test_the_shape_is_for_benchmarks_and_out_of_a_users_sight():
    assert "--shape" not in CliRunner().invoke(build_app(), ["label", "--help"]).output
    with pytest.raises(ConfigError) as caught:
        build_config({**LABEL, "shapes": "two-stage"})
    assert "shape," not in str(caught.value).partition("known options are")[2]


def test_the_endpoint_and_the_job_say_the_same_of_what_they_share():
    for name in ("precision", "device", "decode"):
        assert LabelConfig.model_fields[name].description == ServeConfig.model_fields[name].description
        help_texts = {options_of(command)[name].help for command in ("label", "serve", "evaluate")}
        assert len(help_texts) == 1, help_texts


@pytest.mark.parametrize("command", ["label", "serve", "relabel", "verify"])
def test_examples_of_help_are_lines_that_can_be_copied(command):
    page = CliRunner(env={"COLUMNS": "60"}).invoke(build_app(), [command, "--help"]).output

    _, _, examples = page.partition("Example")
    commands = [line.strip() for line in examples.partition("\n\n")[0].splitlines()[1:]]
    assert len(commands) > 0
    for line in commands:
        assert line.startswith(("shardlabel ", "curl ")), line


def test_help_of_many_options_is_in_groups_and_shows_each_once():
    page = CliRunner().invoke(build_app(), ["label", "--help"]).output

    headings = [line.removesuffix(":") for line in page.splitlines() if line.endswith(":") and line[0].isalpha()]
    assert headings == ["Arguments", "Input", "Model", "Output", "Resources", "Run"]
    for name, option in options_of("label").items():
        long = max(option.opts, key=len)
        lines = [line for line in page.splitlines() if f"{long} " in line and line.startswith("  -")]
        assert len(lines) == (0 if option.hidden or option.param_type_name == "argument" else 1), name


def test_a_list_of_commands_says_of_each_its_whole_sentence():
    for group in ([], ["models"], ["review"], ["cluster"]):
        page = CliRunner().invoke(build_app(), [*group, "--help"]).output
        assert "..." not in page.partition("Commands:")[2], page


def test_the_page_of_commands_says_what_help_says():
    assert PAGE.read_text(encoding="utf-8") == build_page(), "run `make cli-page`"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        pytest.param("shardlabel la", "label", id="command"),
        pytest.param("shardlabel models qu", "quantize", id="of a group"),
        pytest.param("shardlabel label --emb", "--embeddings", id="option"),
        pytest.param("shardlabel label --sha", "--shared-filesystem", id="and no hidden one"),
    ],
)
def test_the_shell_completes_what_is_typed(typed, completed):
    """As bash asks for it, by the function that --show-completion prints."""
    asked = {"_SHARDLABEL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}

    done = CliRunner(env=asked).invoke(build_app(), [], prog_name="shardlabel")

    assert done.output.split() == [completed]
