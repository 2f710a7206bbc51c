"""What exports call their tensors, beside the names that vLLM and SGLang know.

``loader_names.json`` has, for each architecture, those parts of names that the loader's file of it
knows, with what that file imports of models and routed layers: names of modules and parameters, and
names that it maps to others. They were read from the sources of these versions, of all parts that
any export has. No export was loaded by them.
"""

import json
import re
from pathlib import Path

import pytest

from moejax.hf.families import FAMILIES

LOADERS = json.loads(Path(__file__).with_name("loader_names.json").read_text())
CASES = [
    (loader, family)
    for loader, one in LOADERS.items()
    for family, made in FAMILIES.items()
    if made.architecture in one["architectures"]
]
OPTIONAL = {("sglang", "gpt_oss"): {"q_norm", "k_norm"}}
"""Of settings that no released model of the family has: the loader refuses them."""


def parts_of(family: str) -> set[str]:
    """The words in the names of a family's tensors in a layer, without the numbers of experts."""
    names = (rule.theirs.replace("{e}", "") for rule in FAMILIES[family].tensors)
    return {word for name in names for word in re.findall(r"\w+", name)}


@pytest.mark.parametrize(("loader", "family"), CASES)
def test_loaders_know_every_name(loader, family):
    known = set(LOADERS[loader]["architectures"][FAMILIES[family].architecture].split())
    unknown = parts_of(family) - known
    assert unknown == OPTIONAL.get((loader, family), set())
    assert len(known) < 40  # so that not every name would do


def test_the_guide_says_which_families_were_looked_at():
    """The table's column of SGLang is that of the file, and so are the versions."""
    text = Path(__file__).parents[1].joinpath("docs/serving.md").read_text()
    for name, loader in (("vLLM", "vllm"), ("SGLang", "sglang")):
        assert f"{name} {LOADERS[loader]['version']}" in text
    rows = re.findall(r"^\| (`[^|]*) \|([^|]*)\|([^|]*)\|", text, re.M)
    said = {
        family
        for names, _, sglang in rows
        for family in re.findall(r"`(\w+)`", names)
        if sglang.strip() == "yes"
    }
    there = {family for loader, family in CASES if loader == "sglang"}
    assert there == said
