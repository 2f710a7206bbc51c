"""Models that are read for texts of a length alone: beyond it they are refused wherever one may be
given, and said to be when the model is read.
"""

from pathlib import Path

import hf_models
import pytest

import moejax.hf
from moejax.commands.model_settings import TextSettings
from moejax.commands.released_config import read_fields, read_released
from moejax.config import Config, ConfigError, DataConfig, MeshConfig, RunConfig
from moejax.data.tokenizer import ByteTokenizer
from moejax.hf.configs import read_config, write_config
from moejax.inference.generation import Generator
from moejax.inference.imported import make_fine_tuning_config
from moejax.inference.released_model import describe_released
from moejax.inference.sampling import Sampling
from moejax.runtime import device_mesh

N = hf_models.N


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model that reads one token less than there are in the prompts, and where it lies."""
    place = tmp_path_factory.mktemp("short")
    return moejax.hf.load(hf_models.write(place, "deepseek_v32", index_topk=N - 1))


def generate(model):
    generator = Generator(
        model.config,
        MeshConfig(),
        model.params,
        model.bias_LE,
        mesh=device_mesh.make_mesh(MeshConfig()),
        tokenizer=ByteTokenizer(),
        ends=frozenset(),
    )
    generator.generate([hf_models.prompt()[0][:6]], Sampling(tokens=6))


def text_of(model, length):
    opened = describe_released(
        Path(model.directory), model.config, model.params, None, MeshConfig(), model.hf
    )
    return TextSettings(path=Path("x"), sequence_length=length).length(opened)


@pytest.mark.parametrize(
    ("use", "named"),
    [
        pytest.param(lambda m: m.apply(m.params, hf_models.prompt()), "12 positions", id="apply"),
        pytest.param(generate, "a prompt of 6 tokens and --tokens 6", id="generate"),
        pytest.param(lambda m: text_of(m, N), "--sequence-length 12", id="eval"),
        pytest.param(
            lambda m: Config(
                model=m.config, data=DataConfig(sequence_length=N), run=RunConfig(init_from="x")
            ),
            "--data.sequence-length 12",
            id="train",
        ),
    ],
)
def test_a_longer_text_is_refused(short, use, named):
    with pytest.raises(ConfigError) as caught:
        use(short)
    message = str(caught.value)
    assert message.startswith(f"{named}: the model reads at most 11 tokens"), message
    assert "--model.attention.longest" in message


def test_what_is_not_said_is_short_enough(short, tmp_path):
    assert text_of(short, None) == N - 1
    written = make_fine_tuning_config(short.config, tmp_path, "bytes", MeshConfig(), 4096)
    assert written.data.sequence_length == N - 1
    read = read_released(short.directory, read_fields(short.directory), [], "moejax plan")
    assert read.data.sequence_length == N - 1


@pytest.mark.parametrize(
    ("case", "longest"), [("deepseek_v32", 48), ("glm_moe_dsa", 48), ("mistral4", 48)]
)
def test_the_length_is_that_of_the_family(case, longest):
    hf = hf_models.CASES[case]
    assert read_config(hf).attention.longest == longest
    written = write_config(read_config(hf), hf)
    if case == "mistral4":
        assert written == hf
        return
    # Another family says it in its own way.
    assert written["model_type"] == "deepseek_v3"
    assert written["max_position_embeddings"] == longest
    with pytest.raises(ConfigError, match="indexers of sparse attention"):
        write_config(read_config(hf), hf, family=case)


def test_what_is_left_out_is_said(tmp_path, capsys):
    model = moejax.hf.load(hf_models.write(tmp_path, "deepseek_v32"))
    said = capsys.readouterr().err
    assert "left out: the indexers of sparse attention" in said and "index_topk" in said
    assert not any("indexer" in path for path in map(str, model.params))


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        ("mistral4", {"llama_4_scaling_beta": 0.2}, "llama_4_scaling_beta is 0.2"),
        ("mistral4", {"partial_rotary_factor": 0.9}, "partial_rotary_factor is 0.9"),
        ("mistral4", {"original_max_position_embeddings": None}, "original_max_position"),
    ],
)
def test_positions_of_another_kind_are_refused(case, changes, named):
    hf = hf_models.CASES[case]
    found = {**hf["rope_parameters"], **changes}
    found = {name: value for name, value in found.items() if value is not None}
    with pytest.raises(ConfigError, match=named):
        read_config(hf | {"rope_parameters": found})
