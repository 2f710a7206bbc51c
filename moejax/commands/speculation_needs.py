"""What settings of speculation need to have an effect."""

from moejax.config.needs import Need

SPECULATION = (
    Need(
        ("engine.drafts",),
        lambda s: s.engine.speculate != "none",
        "--speculate",
        "give --speculate prompt or draft, too",
        says="has no effect without",
    ),
    Need(
        ("engine.match",),
        lambda s: s.engine.speculate == "prompt",
        "--speculate prompt",
        "give that, too",
        says="has no effect without",
    ),
    Need(
        ("engine.draft",),
        lambda s: s.engine.speculate == "draft",
        "--speculate draft",
        "give that, too",
        says="has no effect without",
    ),
)
