"""Errors in code of one's own, and runs with routers of one's own."""

import json

import pytest

from moejax.commands.command_line import errors_as_messages
from moejax.config import Config, ConfigError, changed, load_config_file, read_config_json, to_dict
from moejax.config.own_code import find_lines
from moejax.inference.kept_files import keep_files
from moejax.inference.trained_run import read_settings
from moejax.routing.routers import ROUTERS
from moejax.runs.run_directory import RunDirectory

MINE = """
from moejax import Config, changed, router

@router("of_my_own", learned=False)
def choose(inputs):
    return {}["x"]

def get_config():
    return changed(Config(), {"model.moe.router": "of_my_own"})
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr("moejax.routing.routers.ROUTERS", ROUTERS)
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    yield file
    ROUTERS.pop("of_my_own", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1\nb = {}['x']\n", "cannot be run: KeyError: 'x'\n  {}, line 2, in <module>"),
        (
            "def get_config():\n  return {}['x']",
            "KeyError: 'x'\n  {}, line 2, in get_config",
        ),
        ("def get_config():\n  import json; json.loads('{')", "line 2, in get_config\n    import"),
        (
            "def get_config(:",
            "cannot be run: invalid syntax (line 1)\n    def get_config(:",
        ),
        (
            "import beside\ndef get_config(): beside.f()",
            "beside.py, line 1, in f\n    def f()",
        ),
    ],
)
def test_an_error_in_a_config_file_has_the_line(tmp_path, text, words):
    file = tmp_path / "mine.py"
    (tmp_path / "beside.py").write_text("def f(): 1/0\n")
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config_file(file)
    assert words.format(file) in str(error.value) and "moejax/" not in str(error.value)


def test_an_error_in_a_router_of_ones_own_has_the_line(mine, monkeypatch, capsys):
    load_config_file(mine)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as end, errors_as_messages():
        ROUTERS["of_my_own"].choose(None)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: in code of your own: KeyError: 'x'\n"
        f"  {mine}, line 6, in choose\n"
        '    return {}["x"]\n'
    )


def test_errors_of_moejax_itself_keep_their_traceback():
    with pytest.raises(KeyError) as error, errors_as_messages():
        {}["x"]
    assert find_lines(error.value) == ""


def test_a_run_keeps_the_file_of_its_router_and_says_how_to_give_it(mine, tmp_path):
    config = changed(load_config_file(mine), {"run.directory": str(tmp_path / "a run")})
    with RunDirectory(tmp_path / "a run") as run:
        run.write_config(config)
        keep_files(run, config, None)
    kept = run.path / "code" / "mine.py"
    assert kept.read_text() == MINE
    del ROUTERS["of_my_own"]
    with pytest.raises(Exception, match="is not one of moejax's") as error:
        read_settings(run.path)
    assert f"give --config '{kept}'" in str(error.value) and "damaged" not in str(error.value)
    load_config_file(kept)
    assert read_settings(run.path)[0] == config


def test_other_runs_keep_no_code(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        keep_files(run, Config(), None)
    assert not (run.path / "code").exists()


@pytest.mark.parametrize("more", [{"model_type": "olmoe"}, {"architectures": ["X"]}])
def test_the_config_of_a_released_model_is_not_called_damaged(tmp_path, more):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"hidden_size": 8} | more))
    with pytest.raises(ConfigError, match="is the config.json of a released model") as error:
        load_config_file(file)
    assert f"moejax import {tmp_path} NEW" in str(error.value)
    assert f"--run.init-from {tmp_path}" in str(error.value)
    file.write_text(json.dumps(to_dict(Config())))
    assert read_config_json(file) == Config()
