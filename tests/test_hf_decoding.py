"""Text from released families: by their cache of keys and values, and against transformers' own."""

import hf_models
import jax
import numpy as np
import pytest
from pages import PAGE, make_pool, make_rows

import moejax.hf
from moejax.config import MeshConfig
from moejax.data.tokenizer import ByteTokenizer
from moejax.inference.generation import Generator
from moejax.inference.sampling import Sampling
from moejax.runtime import device_mesh


def one_of_each(place: int, *quick: str) -> list:
    """The shapes that are named here, and in the slow tests one of each family: the first (0), or
    the last (-1).
    """
    by_family: dict[str, list[str]] = {}
    for name, hf in hf_models.CASES.items():
        by_family.setdefault(hf["model_type"], []).append(name)
    cases = dict.fromkeys([*quick, *(names[place] for names in by_family.values())])
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in cases]


@pytest.mark.slow
@pytest.mark.parametrize("case", one_of_each(-1, "mixtral_window_tied"))
def test_greedy_text_is_that_of_transformers(case, tmp_path):
    """Token for token, in a batch and alone."""
    layout = MeshConfig(data=1)
    mesh = device_mesh.make_mesh(layout, jax.devices()[:1])
    model = moejax.hf.load(hf_models.write(tmp_path, case), mesh=mesh, layout=layout)
    generator = Generator(
        model.config,
        layout,
        model.params,
        model.bias_LE,
        mesh=mesh,
        tokenizer=ByteTokenizer(),
        ends=frozenset(),
    )
    sampling = Sampling(tokens=10, temperature=0.0)
    prompts = list(hf_models.prompt())
    done = generator.generate(prompts, sampling)
    want = hf_models.golden(case)["greedy_BN"]
    np.testing.assert_array_equal([one.ids for one in done.continuations], want)
    # Alone, with a part of what was just generated in the prompt.
    for prompt, tokens, n in zip(prompts, want, (0, 3, 6), strict=True):
        longer = np.concatenate([prompt, tokens[:n]])
        (one,) = generator.generate([longer], sampling).continuations
        np.testing.assert_array_equal(one.ids[: 10 - n], tokens[n:])


# One of each form of attention.
@pytest.mark.parametrize(
    "case", one_of_each(0, "mixtral_window_tied", "olmoe_k1", "deepseek_v3_yarn", "gpt_oss")
)
def test_decoding_equals_the_forward_pass_at_every_position(case, tmp_path):
    """Prompts of three lengths side by side, read at once and then token by token."""
    model = moejax.hf.load(hf_models.write(tmp_path, case))
    ids, read = hf_models.prompt(), 5
    whole = np.asarray(model.apply(model.params, ids))
    less = np.array([0, 2, 4])  # so many tokens less has each prompt
    slots = -(-hf_models.N // PAGE) * PAGE
    step = jax.jit(
        lambda token_BN, rows, pool: model.model.apply(
            {"params": model.params}, token_BN, rows, pool, model.bias_LE, method="extend"
        )[:2]
    )

    pool = make_pool(model.config, len(ids), slots)
    logits_B1V, pool = step(ids[:, :read], make_rows(read - less, 0 * less, slots), pool)
    for last in range(read, hf_models.N):
        at = last - less
        for row in range(len(ids)):
            np.testing.assert_allclose(
                logits_B1V[row, 0], whole[row, at[row] - 1], atol=1e-4, rtol=0
            )
        token_B1 = np.take_along_axis(ids, at[:, None], 1)
        logits_B1V, pool = step(token_B1, make_rows(0 * at + 1, at, slots), pool)
