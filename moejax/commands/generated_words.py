"""What `moejax generate` prints of texts."""

from moejax.inference.generation import Generated
from moejax.runtime.number_words import duration


def write_headers(prompts: list[str], done: Generated) -> list[str]:
    """Each text under a line that tells its number and why it ended."""
    why = {"end": "the text ended", "stop": "--stop", "length": "--tokens"}
    lines = []
    for number, (prompt, one) in enumerate(zip(prompts, done.continuations, strict=True), 1):
        lines += [f"--- {number} ({len(one.ids):,} tokens; {why[one.ended]})", prompt + one.text]
    return lines


def describe_speed(done: Generated) -> str:
    """How many tokens there are, how long they took, and how many drafts were right."""
    count = sum(len(one.ids) for one in done.continuations)
    rate = done.tokens_per_second
    fast = "" if rate is None else f"{rate:,.0f} tokens/s after "
    words = f"{count:,} tokens, {fast}{duration(done.first_seconds)} to compile and read"
    if (drafts := done.drafts) is None:
        return words
    share = f" ({drafts.right / drafts.checked:.0%})" if drafts.checked else ""
    return (
        f"{words}; {drafts.right:,} of {drafts.checked:,} drafts right{share},"
        f" {drafts.tokens_per_call:.2f} tokens a call for each text"
    )
