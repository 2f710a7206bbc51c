"""Which layer is what: windows, experts, predictions of a second token."""

from collections.abc import Callable

from moejax.config.checks import check, shorten
from moejax.config.model import ModelConfig
from moejax.hf.fields.translation import Fields, Translation

KINDS = {"full": "full_attention", "window": "sliding_attention", "delta": "linear_attention"}
"""What ``layer_types`` calls our kinds of layers."""
NO_WINDOW_IS_USED = 4096
"""Of models in which no layer has one, but the file must say a number."""


def _read_kinds(said: list[str], layers: int, allowed: tuple[str, str]) -> list[str]:
    """Our kinds of the layers, from a list of theirs."""
    ours = {KINDS[kind]: kind for kind in allowed}
    check(
        len(said) == layers and all(kind in ours for kind in said),
        f"layer_types {shorten(said)} must name {' or '.join(ours)} for each of the {layers}"
        f" layers.",
    )
    return [ours[kind] for kind in said]


def _read_layer_types(hf: Fields) -> Fields:
    """Which layers have windows; by default every other one, the first included."""
    layers, size = hf["num_hidden_layers"], hf["sliding_window"]
    said = hf.get("layer_types")
    if said is None:
        said = [KINDS["full" if i % 2 else "window"] for i in range(layers)]
    kinds = _read_kinds(said, layers, ("full", "window"))
    if "window" not in kinds or size is None:
        return {}
    return {"attention.window": size, "attention.kinds": _find_pattern(kinds)}


def _find_pattern(kinds: list[str]) -> tuple[str, ...]:
    """The shortest pattern that gives these kinds when it is repeated; none if all are alike."""
    letters = "".join(kind[0] for kind in kinds)
    size = next(n for n in range(1, len(kinds) + 1) if letters.startswith(letters[n:]))
    return tuple(kinds[:size]) if size > 1 else ()


layer_types = Translation(
    _read_layer_types,
    lambda model: {
        "sliding_window": model.attention.window,
        "layer_types": [KINDS["full" if window is None else "window"] for window in model.windows],
    },
)


def attention_kinds(default: Callable[[Fields], list[bool]], positions: bool) -> Translation:
    """Which layers see all positions, where there is no list by ``default``; whether those have
    rotary ``positions``, as the others do.
    """

    def read(hf: Fields) -> Fields:
        said, size = hf.get("layer_types"), hf["sliding_window"]
        check(
            positions or type(size) is int,
            f"sliding_window is {shorten(size)}: it must be a whole number.",
        )
        if said is None:
            said = [KINDS["full" if full else "window"] for full in default(hf)]
        ours = _read_layer_types(hf | {"layer_types": said})
        return ours | ({} if positions else {"attention.rotary_in": "window"})

    def write(model: ModelConfig) -> Fields:
        fields = layer_types.write(model)
        turned = any(rotation is not None for rotation in model.rotations)
        if fields["sliding_window"] is None and not turned:
            fields["sliding_window"] = NO_WINDOW_IS_USED
        return fields

    return Translation(read, write)


def _read_memories(hf: Fields) -> Fields:
    """Which layers have a memory; where there is no list, all but every n-th one."""
    layers, said = hf["num_hidden_layers"], hf.get("layer_types")
    if said is None:
        every = hf.get("full_attention_interval", 4)
        check(
            type(every) is int and every > 0,
            f"full_attention_interval is {shorten(every)}: it must be a whole number greater than"
            f" 0.",
        )
        said = [KINDS["delta" if (i + 1) % every else "full"] for i in range(layers)]
    kinds = _read_kinds(said, layers, ("full", "delta"))
    if "delta" not in kinds:
        return {}
    return {"attention.kinds": _find_pattern(kinds) or ("delta",)}


MEMORY_SIZES = {
    "linear_num_key_heads": "key_heads",
    "linear_num_value_heads": "value_heads",
    "linear_key_head_dim": "key_size",
    "linear_value_head_dim": "value_size",
    "linear_conv_kernel_dim": "convolution",
}
memories = Translation(
    lambda hf: (
        _read_memories(hf) | {f"delta.{name}": hf[field] for field, name in MEMORY_SIZES.items()}
    ),
    lambda model: {
        "layer_types": [KINDS[kind] for kind in model.attention_kinds],
        **{field: getattr(model.delta_sizes, name) for field, name in MEMORY_SIZES.items()},
    },
)
"""Which layers have a memory, and its sizes."""


def name_routed(routed: list[bool], said: str) -> Fields:
    """Our settings for which layers are routed, as a file ``said`` it. Raises ``ConfigError``."""
    layers = len(routed)
    numbers = [i for i, is_routed in enumerate(routed) if is_routed]
    lowest = numbers[0] if numbers else layers
    alone = 1 if lowest == layers - 1 else lowest + 1
    every = numbers[1] - lowest if len(numbers) > 1 else alone
    first = lowest + 1 - every
    check(
        routed == [i >= first >= 0 and (i - first) % every == every - 1 for i in range(layers)],
        f"{said}: only every n-th layer after some dense ones may be routed.",
    )
    return {"moe.first_dense": first, "moe.every": every}


def _read_routed_layers(hf: Fields) -> Fields:
    layers, step = hf["num_hidden_layers"], hf["decoder_sparse_step"] or 1
    dense = set(hf["mlp_only_layers"] or ())
    return name_routed(
        [i not in dense and (i + 1) % step == 0 for i in range(layers)],
        f"decoder_sparse_step {step} with mlp_only_layers {shorten(sorted(dense))}",
    )


routed_layers = Translation(
    _read_routed_layers,
    lambda model: {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, routed in enumerate(model.routed_layers) if not routed],
    },
)


def mlp_layer_types(first_dense: Callable[[Fields], int]) -> Translation:
    """A list that says ``dense`` or ``sparse`` of each layer; where there is none, so many layers
    at the bottom are dense.
    """

    def read(hf: Fields) -> Fields:
        layers, kinds = hf["num_hidden_layers"], hf.get("mlp_layer_types")
        if kinds is None:
            dense = min(first_dense(hf), layers)
            kinds = ["dense"] * dense + ["sparse"] * (layers - dense)
        said = f"mlp_layer_types {shorten(kinds)}"
        check(
            len(kinds) == layers and set(kinds) <= {"dense", "sparse"},
            f"{said} must name dense or sparse for each of the {layers} layers.",
        )
        return name_routed([kind == "sparse" for kind in kinds], said)

    return Translation(
        read,
        lambda model: {
            "mlp_layer_types": ["sparse" if routed else "dense" for routed in model.routed_layers]
        },
    )


next_tokens = Translation(
    lambda hf: {"next_tokens": hf.get("num_nextn_predict_layers") or 0},
    lambda model: {"num_nextn_predict_layers": model.next_tokens},
)

# Of families whose layers that predict further tokens are left out, and said to be.
no_next_tokens = Translation(lambda hf: {}, lambda model: {"num_nextn_predict_layers": 0})
