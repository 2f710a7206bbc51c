"""Adapters in PEFT's format: out and in again, and every kind of bad file."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from moejax.commands.main import run
from moejax.config import AttentionConfig, ConfigError, LoraConfig, ModelConfig, MoEConfig
from moejax.config.errors import CheckpointError
from moejax.hf.peft import (
    ARRAYS,
    SETTINGS,
    list_modules,
    list_shapes,
    read_adapter,
    write_adapter,
)
from moejax.hf.reading import array_shapes, load
from moejax.models.adapters import adapter_shapes, attach

MOE = MoEConfig(num_experts=4, hidden_size=12, router="mixtral", capacity_factor=None, group_size=1)
MIXTRAL = ModelConfig(num_layers=2, width=16, num_heads=2, vocab_size=11, qk_norm=False, moe=MOE)
LATENT = AttentionConfig(kv_rank=6, query_rank=5, rope_head_size=4, value_head_size=6)
FAMILIES = {
    "mixtral": MIXTRAL,
    "deepseek_v3": dataclasses.replace(
        MIXTRAL,
        attention=LATENT,
        num_layers=3,
        moe=dataclasses.replace(MOE, router="deepseek_v3", first_dense=1, shared_experts=1),
    ),
}


def make(family, **lora):
    """Adapters with numbers, and the shapes of the model's arrays."""
    config = FAMILIES[family]
    shapes, rng = array_shapes(config), np.random.default_rng(0)
    params = {p: jax.ShapeDtypeStruct(s, "f4") for p, s in shapes.items() if p != ("bias_LE",)}
    like = flatten_dict(adapter_shapes(unflatten_dict(params), LoraConfig(rank=3, **lora)))
    made = {path: rng.normal(size=p.shape).astype("f4") for path, p in like.items()}
    return config, shapes, unflatten_dict(made)


def write(directory, family="mixtral", **lora):
    config, shapes, adapters = make(family, **lora)
    write_adapter(directory, family, config, shapes, adapters, 2.0, "base")
    return config, shapes, adapters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on", ["attention,experts,dense", "attention", "experts"])
def test_adapters_come_back_to_the_bit(tmp_path, family, on):
    config, shapes, adapters = write(tmp_path, family, on=on)
    found, scale = read_adapter(tmp_path, family, config, shapes)
    assert scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, found, adapters)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_adapter_adds_is_what_stands_on_disk(tmp_path, family):
    """B A of a module, as PEFT multiplies them, is A B of ours, written like the matrix itself."""
    config, shapes, adapters = write(tmp_path, family)
    tensors, ours = load_file(tmp_path / ARRAYS), flatten_dict(adapters)
    for module in list_modules(family, config, shapes):
        start = f"base_model.model.{module.name}.lora_"
        if f"{start}A.weight" not in tensors:
            continue
        added = tensors.pop(f"{start}B.weight") @ tensors.pop(f"{start}A.weight")
        a, b = (ours[(*module.path, f"lora_{part}")][module.place] for part in "ab")
        np.testing.assert_allclose(
            added, module.entry.rule.write([a @ b], config), rtol=1e-5, atol=1e-5
        )
    assert not tensors


def test_modules_are_named_by_their_last_name_where_all_have_adapters(tmp_path):
    write(tmp_path, "mixtral")
    names = ["k_proj", "o_proj", "q_proj", "v_proj", "w1", "w2", "w3"]
    assert json.loads((tmp_path / SETTINGS).read_text())["target_modules"] == names
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", "deepseek_v3", on="dense")
    names = json.loads((tmp_path / "other" / SETTINGS).read_text())["target_modules"]
    assert "model.layers.0.mlp.gate_proj" in names and "gate_proj" not in names


def test_trained_routers_have_no_place(tmp_path):
    with pytest.raises(CheckpointError, match="w_router_DE was trained itself.*without --adapters"):
        write(tmp_path, routers=True)


def change_settings(place, **fields):
    said = json.loads((place / SETTINGS).read_text())
    (place / SETTINGS).write_text(json.dumps(said | fields))


def change_tensors(place, change):
    tensors = load_file(place / ARRAYS)
    change(tensors)
    save_file(tensors, place / ARRAYS)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
BAD = {
    "peft_type 'IA3' is not supported": lambda p: change_settings(p, peft_type="IA3"),
    "use_dora True is not supported": lambda p: change_settings(p, use_dora=True),
    "bias 'all' is not supported; it must be 'none'": lambda p: change_settings(p, bias="all"),
    "rank_pattern .* is not supported": lambda p: change_settings(p, rank_pattern={"q_proj": 8}),
    "target_parameters .* is not": lambda p: change_settings(p, target_parameters=["experts.x"]),
    "r 0 must be a whole number": lambda p: change_settings(p, r=0),
    "r None must be a whole number": lambda p: change_settings(p, r=None),
    "lora_alpha 'x' must be a number": lambda p: change_settings(p, lora_alpha="x"),
    "is .3, 16. instead of .4, 16.": lambda p: change_settings(p, r=4),
    "adapter_model.safetensors is missing": lambda p: (p / ARRAYS).unlink(),
    "lora_A.weight is there without .*lora_B": lambda p: change_tensors(
        p, lambda t: t.pop(f"{Q}B.weight")
    ),
    "'x' is not known: no matrix of this mixtral model": lambda p: change_tensors(
        p, lambda t: t.update(x=np.zeros(1, "f4"))
    ),
    "q_proj.lora_A.weight is not finite": lambda p: change_tensors(
        p, lambda t: t[f"{Q}A.weight"].fill(np.nan)
    ),
    "is I32; adapters are": lambda p: change_tensors(
        p, lambda t: t.update({f"{Q}A.weight": t[f"{Q}A.weight"].astype("i4")})
    ),
    "has no tensors": lambda p: change_tensors(p, dict.clear),
    "adapter_config.json": lambda p: (p / SETTINGS).write_text("{"),
    "adapter_model": lambda p: (p / ARRAYS).write_bytes(b"\x08" * 12),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files(tmp_path, message):
    config, shapes, _ = write(tmp_path)
    BAD[message](tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        read_adapter(tmp_path, "mixtral", config, shapes)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("command", ["quantise", "prune", "export", "upcycle", "import"])
def test_what_needs_the_whole_model_says_how_to_make_it(command, tmp_path):
    (tmp_path / SETTINGS).write_text("{}")
    with pytest.raises(
        ConfigError, match="has adapters, and not .*: `moejax merge .* --base MODEL"
    ):
        run([command, str(tmp_path), str(tmp_path / "new")])


def test_check_says_what_they_are(tmp_path, capsys):
    write(tmp_path)
    run(["check", str(tmp_path)])
    said = capsys.readouterr().out
    assert "of rank 3, multiplied by 2" in said and f"moejax merge {tmp_path} NEW" in said


def test_layers_without_adapters_have_zeros(tmp_path):
    config, shapes, _ = write(tmp_path)
    change_tensors(tmp_path, lambda t: [t.pop(n) for n in list(t) if "layers.1." in n])
    found, _ = read_adapter(tmp_path, "mixtral", config, shapes)
    for leaf in jax.tree.leaves(found):
        assert leaf[0].any() and not leaf[1].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, of their own matters
def test_peft_gives_the_same_logits(tmp_path):
    """A Mixtral with adapters on attention and on every expert: PEFT fuses what we write for each
    expert into the adapters of transformers' fused parameters.
    """
    pytest.importorskip("peft", minversion="0.21")
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 11}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    theirs = MixtralForCausalLM(MixtralConfig(**sizes, **heads, sliding_window=None)).eval()
    theirs.save_pretrained(tmp_path / "base")
    ours = load(tmp_path / "base")
    shapes = list_shapes(ours.params, ours.bias_LE)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda p: rng.normal(size=p.shape).astype("f4") / 2,
        adapter_shapes(ours.params, LoraConfig(rank=3)),
    )
    (tmp_path / "adapter").mkdir()
    base = str(tmp_path / "base")
    write_adapter(tmp_path / "adapter", "mixtral", ours.config, shapes, adapters, 2.0, base)
    tokens = rng.integers(0, 11, (2, 9))
    plain = theirs(torch.tensor(tokens)).logits.detach().numpy()
    adapted = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    wanted = adapted(torch.tensor(tokens)).logits.detach().numpy()
    found = ours.apply(attach(ours.params, adapters, 2.0), tokens)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * scale)
    assert np.abs(wanted - plain).max() > 0.1 * scale
    # And what PEFT writes is read: the experts' adapters of its own, fused form are refused.
    adapted.save_pretrained(tmp_path / "again")
    with pytest.raises(CheckpointError, match="target_parameters"):
        read_adapter(tmp_path / "again", "mixtral", ours.config, shapes)
