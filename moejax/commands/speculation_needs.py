"""What settings of speculation need to have an effect."""

from moejax.config.need import Need

SPECULATION = (
    Need(
        ("speculation.drafts",),
        lambda s: s.speculation.speculate != "none",
        "--speculate",
        "give --speculate prompt, draft or mtp, too",
        says="has no effect without",
    ),
    Need(
        ("speculation.match",),
        lambda s: s.speculation.speculate == "prompt",
        "--speculate prompt",
        "give that, too",
        says="has no effect without",
    ),
    Need(
        ("speculation.draft",),
        lambda s: s.speculation.speculate == "draft",
        "--speculate draft",
        "give that, too",
        says="has no effect without",
    ),
)
