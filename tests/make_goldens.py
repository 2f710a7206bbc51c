"""Write ``tests/goldens`` with transformers: ``python tests/make_goldens.py``, where torch is
(``pip install -e '.[peers]'``).
"""

import json
import tempfile
from pathlib import Path

import hf_models
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM


def shapes_of(hf: dict, directory: Path) -> dict[str, list[int]]:
    """The tensors that transformers writes for a config."""
    (directory / "config.json").write_text(json.dumps(hf))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).save_pretrained(
        directory
    )
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def outputs(directory: Path) -> dict[str, np.ndarray]:
    """What transformers says of a model."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(hf_models.prompt(), dtype=torch.int64)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        known = {}
        try:
            known = model(ids, labels=ids, output_router_logits=True)
        except TypeError:
            known = model(ids)
        greedy = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)
    loss = getattr(known, "aux_loss", None)
    return {
        "logits_BNV": known.logits.numpy(),
        "greedy_BN": greedy[:, ids.shape[1] :].numpy().astype(np.int32),
        "loss": np.float32(np.nan if loss is None else float(loss)),
    }


def fields_of(hf: dict) -> dict[str, dict]:
    """What a family means by fields that are not there, and the values of fields with which its
    model computes something else, or nothing, from the same tensors.
    """
    kind = hf["model_type"]
    defaults = AutoConfig.for_model(kind, **hf_models.sizes_of(kind)).to_dict()
    matter = {}
    with tempfile.TemporaryDirectory() as place:

        def make(**changes) -> torch.nn.Module:
            (Path(place) / "config.json").write_text(json.dumps(hf | changes))
            config = AutoConfig.from_pretrained(place)
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

        ids, whole = torch.arange(3, 40)[None], make()
        for tensor in whole.parameters():
            torch.nn.init.normal_(tensor, std=0.25)
        with torch.no_grad():
            want = whole(ids).logits
            for field, value in hf_models.change_fields(hf, defaults).items():
                try:
                    changed = make(**{field: value})
                    changed.load_state_dict(whole.state_dict())
                    same = torch.equal(changed(ids).logits, want)
                except Exception:  # they raise many kinds
                    same = False
                if not same:
                    matter[field] = value
    return {"defaults": defaults, "matter": matter}


def main() -> None:
    """Write all files."""
    hf_models.GOLDENS.mkdir(exist_ok=True)
    fields = {hf["model_type"]: fields_of(hf) for hf in hf_models.FIRST}
    text = json.dumps(fields, indent=1, sort_keys=True)
    (hf_models.GOLDENS / "fields.json").write_text(text + "\n")
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for case, hf in hf_models.CASES.items():
            (Path(place) / case).mkdir()
            found[case] = shapes_of(hf, Path(place) / case)
        (hf_models.GOLDENS / "tensors.json").write_text(json.dumps(found) + "\n")
        said = {}
        for case in hf_models.CASES:
            said |= {
                f"{case}/{name}": value
                for name, value in outputs(hf_models.write(Path(place) / "2" / case, case)).items()
            }
            print(case, np.abs(said[f"{case}/logits_BNV"]).max(), said[f"{case}/loss"])
    np.savez_compressed(hf_models.GOLDENS / "outputs.npz", **said)


if __name__ == "__main__":
    main()
