"""Draw one batch's way and one token's way: python docs/draw_architecture.py"""

from html import escape
from pathlib import Path

BOX, HEIGHT, GAP = 440, 46, 18
# Each step: the file, what it does, what it hands on.
BATCH = [
    ("train.py", "reads the config and flags", "Config"),
    ("train/training.py", "prepares the run, or resumes it", "state, batches"),
    ("data/pipeline.py", "cuts, shuffles, packs", "batch [B, N]"),
    ("train/loop.py", "takes batches one by one", "batch on the devices"),
    ("train/step.py", "one update, a pure function", "inputs_BN"),
    ("train/forward.py", "runs the model, adds up", "batch"),
    ("models/decoder.py", "embeds, runs the layers, head", "logits_BNV, statistics"),
    ("train/objective.py", "cross-entropy and balance losses", "loss, gradients"),
    ("train/optimizer.py", "AdamW or Muon, learning rate", "new parameters"),
    ("train/interval.py", "sums become a line of metrics", "metrics, load"),
    ("runs/alarms.py", "what goes wrong, in words", "lines, alarms"),
    ("runs/run_directory.py", "writes the run", "run directory"),
    ("runs/pages/report.py", "draws it", "report.html"),
]
# How a routed layer in the model works.
TOKEN = [
    ("models/layers.py", "a block: attention, then this", "x_BND"),
    ("moe/layer.py", "the router's logits", "logits_GSE"),
    ("routing/routers.py", "the router's name: which function", "RouterInput"),
    ("routing/token_choice.py", "the K best experts", "expert_GSK, weight_GSK"),
    ("moe/choose_travel.py", "slots or rows; which devices", "Travel"),
    ("routing/seating.py", "who gets a slot, who is dropped", "slot_GSK"),
    ("moe/dispatch/gather.py", "tokens into slots (or einsum, grouped)", "x_EGCD"),
    ("moe/experts.py", "each expert computes", "y_EGCD"),
    ("moe/dispatch/gather.py", "back, weighted and added up", "y_GSD"),
    ("moe/balance.py", "sums for losses and metrics", "y_BND, statistics"),
]
STYLE = """
text { font-family: ui-sans-serif, system-ui, sans-serif; font-size: 14px }
.box { fill: #f4f6fb; stroke: #4a6fa5; stroke-width: 1.5 }
.file { fill: #10243e; font-family: ui-monospace, monospace; font-weight: 600 }
.does { fill: #33475b }
.hands { fill: #7d8590; font-size: 12px; font-family: ui-monospace, monospace }
.arrow { stroke: #7d8590; stroke-width: 1.5 }
.head { fill: #7d8590 }
.title { fill: #6f8fc0; font-size: 17px; font-weight: 700 }
.link { stroke: #6f8fc0; stroke-width: 2; stroke-dasharray: 5 4; fill: none }
"""


def draw_lane(title: str, steps: list[tuple[str, str, str]], left: int, top: int) -> list[str]:
    """The boxes of one way, from top to bottom, with what each hands on."""
    parts = [f'<text class="title" x="{left}" y="{top - 14}">{escape(title)}</text>']
    for i, (file, does, hands) in enumerate(steps):
        y = top + i * (HEIGHT + GAP)
        parts += [
            f'<rect class="box" x="{left}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="7"/>',
            f'<text class="file" x="{left + 12}" y="{y + 19}">{file}</text>',
            f'<text class="does" x="{left + 12}" y="{y + 37}">{escape(does)}</text>',
            f'<text class="hands" x="{left + BOX - 10}" y="{y + 19}" text-anchor="end">'
            f"{escape(hands)}</text>",
        ]
        if i + 1 < len(steps):
            x, end = left + 40, y + HEIGHT + GAP
            parts += [
                f'<line class="arrow" x1="{x}" y1="{y + HEIGHT}" x2="{x}" y2="{end - 6}"/>',
                f'<path class="head" d="M{x - 5} {end - 8}h10l-5 8z"/>',
            ]
    return parts


def draw() -> str:
    """The whole picture: the batch on the left, the token within the model on the right."""
    left, right, top = 10, 10 + BOX + 90, 50
    start = top + HEIGHT + GAP  # the token's way begins beside the second box
    model = next(i for i, step in enumerate(BATCH) if step[0].startswith("models/"))
    y_model = top + model * (HEIGHT + GAP) + HEIGHT // 2
    y_token, middle = start + HEIGHT // 2, left + BOX + 45
    height = top + len(BATCH) * (HEIGHT + GAP) + 6
    width = right + BOX + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img"'
        f" aria-label=\"One batch's way through the files, and one token's way\">",
        f"<style>{STYLE}</style>",
        *draw_lane("One batch's way", BATCH, left, top),
        *draw_lane("One token's way through a routed layer", TOKEN, right, start),
        f'<path class="link" d="M{left + BOX} {y_model}H{middle}V{y_token}H{right}"/>',
        f'<text class="hands" x="{middle + 6}" y="{y_model - 20}">each</text>',
        f'<text class="hands" x="{middle + 6}" y="{y_model - 6}">layer</text>',
        "</svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
