"""Write ``tests/goldens`` with transformers: ``python tests/make_goldens.py [FAMILY...]``, where
torch is (``pip install -e '.[peers]'``).
"""

import json
import sys
import tempfile
from pathlib import Path

import hf_models
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig


def shapes_of(hf: dict, directory: Path) -> dict[str, list[int]]:
    """The tensors that transformers writes for a config."""
    (directory / "config.json").write_text(json.dumps(hf))
    made = hf_models.peer_class(hf["model_type"])._from_config(
        AutoConfig.from_pretrained(directory)
    )
    made.save_pretrained(directory)
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def outputs(directory: Path, kind: str) -> dict[str, np.ndarray]:
    """What transformers says of a model."""
    model = (
        hf_models.peer_class(kind)
        .from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
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
            return (
                hf_models.peer_class(kind)._from_config(config, attn_implementation="eager").eval()
            )

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


def write(kind: str) -> None:
    """The two files of a family."""
    cases = {case: hf for case, hf in hf_models.CASES.items() if hf["model_type"] == kind}
    tensors, said = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for case, hf in cases.items():
            (Path(place) / case).mkdir()
            tensors[case] = shapes_of(hf, Path(place) / case)
    known = fields_of(next(iter(cases.values()))) | {"tensors": tensors}
    (hf_models.GOLDENS / f"{kind}.json").write_text(in_lines(known))
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            out = outputs(hf_models.write(Path(place) / case, case), kind)
            said |= {f"{case}/{name}": value for name, value in out.items()}
            print(case, np.abs(out["logits_BNV"]).max(), out["loss"])
    np.savez_compressed(hf_models.GOLDENS / f"{kind}.npz", **said)


def in_lines(known: dict[str, dict]) -> str:
    """JSON with a line for each field and each case."""
    parts = []
    for part, said in known.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(x)}" for name, x in sorted(said.items())]
        parts.append(f' "{part}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Of the families that the command names, or of all."""
    hf_models.GOLDENS.mkdir(exist_ok=True)
    for kind in sys.argv[1:] or [hf["model_type"] for hf in hf_models.FIRST]:
        write(kind)


if __name__ == "__main__":
    main()
